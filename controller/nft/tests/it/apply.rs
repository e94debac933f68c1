//! Apply, read back, edit.

use fw_nft::{Kernel, NetlinkKernel, Table, recognise};
use fw_ruleset::{Counts, plan};
use fw_testkit::Netns;

use crate::sample::sample;

#[test]
fn what_is_applied_is_listed_by_nft_and_recognised_when_read_back() {
    let ns = Netns::new("fwnft").unwrap();
    let wanted = sample();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        assert_eq!(kernel.read().unwrap(), Table::Absent);
        let plan = plan(None, &wanted, &Counts::default());
        kernel.check(&plan, &wanted).unwrap();
        assert_eq!(kernel.read().unwrap(), Table::Absent, "a check leaves nothing behind");
        let receipt = kernel.commit(&plan, &wanted).unwrap();
        println!("{receipt:?} {:?}", kernel.features());
        let Table::Ours(observed) = kernel.read().unwrap() else { panic!("not ours") };
        println!("{}", fw_testkit::nft::list_ruleset(&ns).unwrap());
        let raised = recognise(&observed, &wanted);
        assert_eq!(raised, wanted);
    })
    .unwrap();
}
