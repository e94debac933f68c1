//! SIGKILL at every step of a commit.

use std::os::unix::process::ExitStatusExt;

use fw_nft::{Kernel, NetlinkKernel, Step, recognise};
use fw_ruleset::{Counts, plan};
use fw_testkit::Netns;

use crate::apply::{install, observed};
use crate::sample::{policy_chain, sample};

/// Tells the test that it runs as its own child, and where it is to die.
const STEP: &str = "FWNFT_KILL_STEP";
const STEPS: [Step; 4] = [Step::Build, Step::Send, Step::Sent, Step::Acknowledged];

#[test]
fn a_killed_commit_leaves_the_old_or_the_new_ruleset_and_the_next_process_goes_on() {
    if let Ok(step) = std::env::var(STEP) {
        return die_at(STEPS[step.parse::<usize>().unwrap()]);
    }
    let test = "kill::a_killed_commit_leaves_the_old_or_the_new_ruleset_and_the_next_process_goes_on";
    let ns = Netns::new("fwnft").unwrap();
    for (index, step) in STEPS.into_iter().enumerate() {
        let old = sample();
        ns.run(|| install(&mut NetlinkKernel::open().unwrap(), &old)).unwrap();
        let mut child = ns.command(std::env::current_exe().unwrap());
        child.args(["--exact", test]).env(STEP, index.to_string());
        let output = child.output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{step:?}: {output:?}");
        ns.run(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            let wanted = if step < Step::Sent { &old } else { &edited() };
            assert_eq!(recognise(&observed(&mut kernel), wanted), *wanted, "{step:?}");
            assert!(kernel.owned());
            kernel.delete_table().unwrap();
        })
        .unwrap();
    }
}

fn edited() -> fw_ruleset::Ruleset {
    let mut wanted = sample();
    wanted.chains.insert("egress-more-tcp".to_owned(), policy_chain("more"));
    wanted.chains.get_mut("forward").unwrap().rules.pop();
    wanted
}

fn die_at(step: Step) {
    let mut kernel = NetlinkKernel::open().unwrap();
    kernel.set_hook(move |at| {
        if at == step {
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    });
    let (old, new) = (sample(), edited());
    assert_eq!(recognise(&observed(&mut kernel), &old), old);
    kernel.commit(&plan(Some(&old), &new, &Counts::default()), &new).unwrap();
    panic!("lived");
}
