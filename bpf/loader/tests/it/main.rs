use fw_bpf::*;
#[test]
fn quick() {
    probe().unwrap();
    let pins = std::path::PathBuf::from(format!("/run/fwh1-{}", std::process::id()));
    if let Err(e) = self_test(&pins) { let mut s: Option<&dyn std::error::Error> = Some(&e); while let Some(x)=s { println!("{x}"); s=x.source(); } panic!() }
}
