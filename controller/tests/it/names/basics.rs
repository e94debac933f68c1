//! What a name opens, in every mode.

use anyhow::Result;
use fw_testkit::dns::awkward;
use fw_testkit::dns::wire::kind;

use super::field::{Mode, Names, PORT, to_names};

fn in_every_mode(label: &str, policies: &[String], test: impl Fn(&mut Names) -> Result<()>) -> Result<()> {
    for mode in Mode::ALL {
        let mut names = Names::new(label, mode, "", policies)?;
        test(&mut names).map_err(|error| error.context(format!("in mode {}", mode.name())))?;
    }
    Ok(())
}

#[test]
fn an_allowed_name_opens_its_addresses_once_it_was_asked_and_nothing_else() -> Result<()> {
    let policies = [to_names("web", &format!("{{matchName: {}}}", awkward::PLAIN))];
    in_every_mode("names-plain", &policies, |names| {
        let [v4, v6] = awkward::addresses_of(1);
        assert!(!names.reaches(v4, PORT)?, "open before it was asked");
        let addresses = names.resolve(awkward::PLAIN)?;
        assert_eq!(addresses, [v4, v6]);
        for address in addresses {
            assert!(names.reaches(address, PORT)?, "{address} is closed");
            assert!(!names.reaches(address, PORT + 1)?, "{address} is open at another port");
        }
        assert_eq!(names.counted("web", "tcp", awkward::PLAIN)?, Some(2));
        let [other, _] = awkward::addresses_of(2);
        names.resolve(awkward::OTHER)?;
        assert!(!names.reaches(other, PORT)?, "a name that no policy has opened its address");
        Ok(())
    })
}

#[test]
fn every_hop_of_a_cname_chain_counts_and_case_does_not() -> Result<()> {
    let policies = [
        to_names("hop", "{matchName: HOP3.chain.Example.TEST.}"),
        to_names("wild", "{matchPattern: '*.wild.example.test'}"),
    ];
    in_every_mode("names-chain", &policies, |names| {
        let [end, _] = awkward::addresses_of(15);
        let answer = names.ask(awkward::CHAIN, kind::A)?;
        assert_eq!(answer.ips(), [end]);
        assert!(names.reaches(end, PORT)?, "a policy for a hop opens the end of the chain");
        assert_eq!(names.counted("hop", "tcp", "hop3.chain.example.test")?, Some(1));
        names.resolve("a.b.wild.example.test")?;
        assert!(names.reaches(awkward::addresses_of(12)[0], PORT)?, "a pattern crosses labels");
        assert_eq!(names.counted("wild", "tcp", "*.wild.example.test")?, Some(1));
        Ok(())
    })
}
