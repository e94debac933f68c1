//! Namespaces and processes, and that nothing of them stays.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fw_testkit::{BpfMount, Netns, Process, WorkDir};

fn own_inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

/// Longer than anything here takes on a busy machine.
const GENTLE: Duration = Duration::from_secs(20);

#[test]
fn a_closure_runs_in_the_namespace_and_its_caller_stays_outside() {
    let before = own_inode();
    let ns = Netns::new("closure").unwrap();
    let inside = ns.run(own_inode).unwrap();
    assert_eq!(inside, std::fs::metadata(ns.path()).unwrap().ino());
    assert_ne!(inside, before);
    assert_eq!(own_inode(), before);
    assert_eq!(ns.spawn(own_inode).unwrap().join().unwrap().unwrap(), inside);
}

#[test]
fn a_panic_in_the_namespace_reaches_the_caller() {
    let ns = Netns::new("panic").unwrap();
    let caught = std::panic::catch_unwind(|| ns.run(|| panic!("seen outside")));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"seen outside"));
}

#[test]
fn both_kinds_of_children_are_in_the_namespace_and_only_exec_has_its_sys() {
    let ns = Netns::new("child").unwrap();
    let inode = std::fs::metadata(ns.path()).unwrap().ino();
    let link = format!("net:[{inode}]");
    for mut command in [ns.command("readlink"), ns.exec("readlink")] {
        let output = command.arg("/proc/self/ns/net").output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), link);
    }
    ns.ip("link add seen-in-sys type veth peer name other\n").unwrap();
    let sees = |mut command: Command| command.arg("/sys/class/net/seen-in-sys").status().unwrap().success();
    let mut test = ns.exec("test");
    test.arg("-e");
    assert!(sees(test));
    let mut test = ns.command("test");
    test.arg("-e");
    assert!(!sees(test));
}

#[test]
fn sysctls_are_the_namespaces_own_and_nothing_else_can_be_set() {
    let (one, other) = (Netns::new("sysctl").unwrap(), Netns::new("sysctl").unwrap());
    one.sysctl(&[("net.ipv4.ip_forward", "1")]).unwrap();
    assert_eq!(one.read_sysctl("net.ipv4.ip_forward").unwrap(), "1");
    assert_eq!(other.read_sysctl("net.ipv4.ip_forward").unwrap(), "0");
    assert!(one.sysctl(&[("kernel.hostname", "x")]).is_err());
    assert!(one.sysctl(&[("net...kernel.hostname", "x")]).is_err());
}

#[test]
fn an_error_has_what_the_program_said_and_how_to_look() {
    let ns = Netns::new("error").unwrap();
    let text = format!("{:#}", ns.output("ip", &["link", "show", "nowhere"]).unwrap_err());
    assert!(text.contains("nowhere") && text.contains(&format!("ip netns exec {}", ns.name())), "{text}");
}

#[test]
fn names_go_with_their_guard_and_processes_with_theirs() {
    let ns = Netns::new("gone").unwrap();
    let path = ns.path();
    assert!(path.exists());
    let process = Process::spawn(ns.exec_sleep()).unwrap();
    let pid = process.id();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(process);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    drop(ns);
    assert!(!path.exists());
}

#[test]
fn lines_of_a_process_are_found_and_its_end_is_noticed() {
    let ns = Netns::new("lines").unwrap();
    let mut command = ns.command("sh");
    command.args(["-c", "echo one; echo two >&2; read nothing; exit 3"]);
    let mut process = Process::spawn(command).unwrap();
    assert_eq!(process.wait_for_line("tw", GENTLE).unwrap(), "two");
    assert_eq!(process.wait_for_line("on", GENTLE).unwrap(), "one");
    assert_eq!(process.wait(GENTLE).unwrap().code(), Some(3));
    let text = format!("{:#}", process.wait_for_line("three", GENTLE).unwrap_err());
    assert!(text.contains("ended") && text.contains("two"), "{text}");
}

trait ExecSleep {
    fn exec_sleep(&self) -> Command;
}

impl ExecSleep for Netns {
    fn exec_sleep(&self) -> Command {
        let mut command = self.exec("sleep");
        command.arg("1000");
        command
    }
}

/// Not a test of its own: what the tests below interrupt. It makes a namespace and a child in it, says so and
/// waits, or panics. Without the variable it is a test that a lone namespace can be made.
#[test]
fn a_namespace_with_a_child_waits_to_be_interrupted() {
    let ns = Netns::new("victim").unwrap();
    let child = Process::spawn(ns.exec_sleep()).unwrap();
    let mount = BpfMount::new("victim").unwrap();
    if let Ok(file) = std::env::var("FW_TESTKIT_VICTIM") {
        let path = mount.path().to_str().unwrap();
        std::fs::write(&file, format!("{} {} {path}", ns.name(), child.id())).unwrap();
        assert!(std::env::var_os("FW_KEEP_NETNS").is_none(), "panics as asked");
        std::thread::sleep(Duration::from_secs(60));
    }
}

struct Victim {
    process: Process,
    /// Its namespace.
    path: PathBuf,
    /// Its child below `/proc`.
    child: String,
    /// Its bpffs.
    mount: PathBuf,
}

/// Starts this test binary on the victim test.
fn victim(label: &str, keeps: bool) -> Victim {
    let file = std::env::temp_dir().join(format!("fw-testkit-{}-{label}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "namespaces::a_namespace_with_a_child_waits_to_be_interrupted"]);
    command.env("FW_TESTKIT_VICTIM", &file).env_remove("FW_KEEP_NETNS");
    if keeps {
        command.env("FW_KEEP_NETNS", "1");
    }
    let process = Process::spawn(command).unwrap();
    let text = eventually(|| std::fs::read_to_string(&file).ok().filter(|text| text.contains(" /run/")));
    std::fs::remove_file(file).unwrap();
    let parts: Vec<&str> = text.split(' ').collect();
    Victim {
        process,
        path: Path::new("/run/netns").join(parts[0]),
        child: format!("/proc/{}", parts[1]),
        mount: PathBuf::from(parts[2]),
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + GENTLE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "nothing happened for {GENTLE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupted_process_leaves_nothing() {
    let Victim { mut process, path, child, mount } = victim("terminated", false);
    assert!(path.exists() && Path::new(&child).exists() && is_bpffs(&mount));
    let status = process.terminate(GENTLE).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    assert!(!path.exists() && !mount.exists());
    eventually(|| (!is_running(&child)).then_some(()));
}

#[test]
fn what_a_killed_process_left_goes_with_the_next_start() {
    let Victim { process: mut killed, path, child, mount } = victim("killed", false);
    assert!(path.exists() && is_bpffs(&mount));
    // It has no chance to clear up. (Whether it left anything cannot be seen here: a process that another test starts
    // may have removed it by now.)
    killed.kill().unwrap();
    let mut next = victim("next", false).process;
    assert!(!path.exists() && !mount.exists());
    eventually(|| (!is_running(&child)).then_some(()));
    next.terminate(GENTLE).unwrap();
}

#[test]
fn a_failed_test_can_keep_its_namespaces_and_says_how_to_look() {
    let Victim { mut process, path, .. } = victim("kept", true);
    let line = process.wait_for_line("kept: ip netns exec", GENTLE).unwrap();
    assert!(line.contains(path.file_name().unwrap().to_str().unwrap()), "{line}");
    assert!(!process.wait(GENTLE).unwrap().success());
    // Another process may have removed it already, which is what shall happen to it.
    let mut next = victim("after-kept", false).process;
    next.terminate(GENTLE).unwrap();
    assert!(!path.exists());
}

/// An orphan's end is a zombie until pid 1 has reaped it.
fn is_running(process: &str) -> bool {
    std::fs::read_to_string(format!("{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|of| of.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

#[test]
fn a_bpffs_goes_with_its_guard_and_what_is_in_it_too() {
    let mount = BpfMount::new("guard").unwrap();
    let path = mount.path().to_owned();
    assert!(is_bpffs(&path));
    std::fs::create_dir(path.join("of-ours")).unwrap();
    let beside = BpfMount::new("guard").unwrap();
    assert!(!beside.path().join("of-ours").exists(), "each is a file system of its own");
    drop(mount);
    assert!(!path.exists() && is_bpffs(beside.path()));
}

#[test]
fn a_directory_goes_with_its_guard_and_what_is_in_it_too() {
    let directory = WorkDir::new("guard").unwrap();
    let file = directory.write("file", "text").unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
    let path = directory.path().to_owned();
    drop(directory);
    assert!(!path.exists());
    assert!(WorkDir::new("../elsewhere").is_err());
}
