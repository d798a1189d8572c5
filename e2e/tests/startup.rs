//! What a node refuses to start with: one clear sentence, its own exit code, nothing changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, net::TcpListener, path::Path};

use stateside_e2e::{
    command_line::{Ran, run, stateside},
    config::Config,
    node_process::Site,
    rpc,
};

const CONFIG_INVALID: i32 = 10;
const DATA_DIR_LOCKED: i32 = 11;
const PORT_IN_USE: i32 = 12;
const IO_URING_UNAVAILABLE: i32 = 13;
const FILE_VERSION: i32 = 14;
const DATA_DIR_DAMAGED: i32 = 15;

/// A site whose node has run, taken a record and stopped.
fn used_site() -> Site {
    let site = Site::new(Config::default());
    let mut node = site.start();
    put(&site, "kept", "value");
    assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
    drop(node);
    site
}

fn put(site: &Site, key: &str, value: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, key, value).await.unwrap();
    });
}

fn serve(site: &Site) -> Ran {
    run(&mut site.serve_command())
}

/// The node starts after all and has the record that [`used_site`] wrote.
fn still_has_its_record(site: &Site) {
    let _node = site.start();
    assert_eq!(stateside(site, ["get", "kept"]).ok(), "value");
}

/// Every file below a folder with its content, but for the lock.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "LOCK" {
                found.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_locked_data_directory_is_refused_with_the_owner() {
    let site = used_site();
    let node = site.start();
    let other = Site::new(Config::default()).with_data_dir(site.data_dir().to_owned());
    let pid = node.pid().to_string();
    serve(&other).failed_with(DATA_DIR_LOCKED, &["in use", &pid]);
    assert_eq!(stateside(&site, ["get", "kept"]).ok(), "value");
    drop(node);
    still_has_its_record(&site);
}

#[test]
fn a_port_in_use_is_refused_with_its_address() {
    let site = used_site();
    for address in [
        site.data_address(),
        site.control_address(),
        site.metrics_address(),
        format!("127.0.0.1:{}", site.core_port_base()),
    ] {
        let _taken = TcpListener::bind(&address).unwrap();
        serve(&site).failed_with(PORT_IN_USE, &[&address]);
    }
    still_has_its_record(&site);
}

#[test]
fn an_unknown_configuration_key_is_refused_with_file_and_line() {
    let mut site = used_site();
    let lines = site.config.to_toml(site.core_port_base()).lines().count();
    site.config.more = "log.segmnet_mb = 64\n".to_owned();
    let place = format!("stateside.toml:{}", lines + 1);
    serve(&site).failed_with(CONFIG_INVALID, &[&place, "log.segmnet_mb"]);
    let config = site.folder().join("stateside.toml").display().to_string();
    stateside(&site, ["config", "check", "--config", &config])
        .failed_clearly(&[&place, "segmnet_mb"]);
    site.config.more = String::new();
    still_has_its_record(&site);
}

#[test]
fn values_that_do_not_fit_are_all_named_at_once() {
    let mut site = Site::new(Config::default());
    site.config.ack = "sometimes";
    site.config.log_segment_mb = 1;
    serve(&site).failed_with(CONFIG_INVALID, &["partition.ack", "sometimes", "log.segment_mb"]);
    assert!(!site.data_dir().exists(), "a wrong configuration made a data directory");
}

#[test]
fn a_configuration_that_is_no_toml_is_refused_with_the_line() {
    let mut site = Site::new(Config::default());
    site.config.more = "this is no toml\n".to_owned();
    serve(&site).failed_with(CONFIG_INVALID, &["stateside.toml:"]);
}

#[test]
fn a_data_directory_of_another_version_is_refused_and_left_alone() {
    let site = used_site();
    let format = site.data_dir().join("FORMAT");
    let before = fs::read_to_string(&format).unwrap();
    fs::write(&format, "stateside-data 99\n").unwrap();
    let untouched = contents(site.data_dir());
    serve(&site).failed_with(FILE_VERSION, &["99"]);
    assert_eq!(contents(site.data_dir()), untouched);
    fs::write(&format, before).unwrap();
    still_has_its_record(&site);
}

#[test]
fn a_half_written_manifest_is_refused_and_left_alone() {
    let site = used_site();
    let manifest = site.data_dir().join("MANIFEST");
    let whole = fs::read(&manifest).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&manifest, &whole[..length]).unwrap();
        let untouched = contents(site.data_dir());
        serve(&site).failed_with(DATA_DIR_DAMAGED, &["MANIFEST"]);
        assert_eq!(contents(site.data_dir()), untouched, "cut at {length}");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&manifest, &flipped).unwrap();
    serve(&site).failed_with(DATA_DIR_DAMAGED, &["MANIFEST"]);
    fs::remove_file(&manifest).unwrap();
    serve(&site).failed_with(DATA_DIR_DAMAGED, &["MANIFEST"]);
    fs::write(&manifest, &whole).unwrap();
    still_has_its_record(&site);
}

#[test]
fn a_manifest_that_was_being_replaced_is_the_old_one_or_the_new() {
    let site = used_site();
    // What a crash in the middle of a replacement leaves: the old file, and a part of the new
    // one under whatever name it is written.
    let whole = fs::read(site.data_dir().join("MANIFEST")).unwrap();
    for name in ["MANIFEST.new", "MANIFEST.tmp", ".MANIFEST.tmp"] {
        fs::write(site.data_dir().join(name), &whole[..whole.len() / 2]).unwrap();
    }
    still_has_its_record(&site);
}

#[test]
fn a_directory_that_is_not_ours_is_refused_and_left_alone() {
    let site = Site::new(Config::default());
    fs::create_dir_all(site.data_dir()).unwrap();
    fs::write(site.data_dir().join("thesis.txt"), "years of work").unwrap();
    let ran = serve(&site);
    ran.failed_with(DATA_DIR_DAMAGED, &["not"]);
    let left: Vec<_> = fs::read_dir(site.data_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "LOCK")
        .collect();
    assert_eq!(left, ["thesis.txt"]);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_refused() {
    let site = Site::new(Config::default());
    let file = site.folder().join("file");
    fs::write(&file, "").unwrap();
    let site = site.with_data_dir(file.join("data"));
    serve(&site).failed_with(DATA_DIR_DAMAGED, &["data"]);
}

#[test]
fn a_kernel_that_forbids_io_uring_is_named() {
    let mut site = Site::new(Config::default());
    site.before_exec = Some(seccomp::forbid_io_uring);
    serve(&site).failed_with(IO_URING_UNAVAILABLE, &["io_uring"]);
}

/// Lines of libraries that use the `log` crate once went nowhere.
#[test]
fn what_the_executor_warns_of_is_logged() {
    for (format, level) in
        [("text", "info"), ("json", "info"), ("text", "error"), ("text", "trace")]
    {
        let mut site = Site::new(Config::default());
        site.config.more = format!("logging.format = \"{format}\"\nlogging.level = \"{level}\"\n");
        site.before_exec = Some(seccomp::forbid_registered_buffers);
        let mut node = site.start();
        let output = node.output();
        let line = output.lines().find(|line| line.contains("registering buffers"));
        assert_eq!(line.is_some(), level != "error", "{output}");
        if let Some(line) = line {
            assert!(line.contains("WARN") && line.contains("main ring"), "{line}");
            assert_eq!(format == "json", line.contains("\"target\":\"glommio"), "{line}");
        }
        // Below warnings such libraries are not asked, however curious somebody is about our own.
        for line in output.lines().filter(|line| line.contains("log.target")) {
            assert!(line.contains("\"WARN\"") || line.contains("\"ERROR\""), "{line}");
        }
        assert_eq!(stateside(&site, ["upsert", "key", "value"]).code, Some(0));
        assert_eq!(node.terminate().code(), Some(0));
    }
}

#[test]
fn the_command_line_is_checked_before_anything_happens() {
    let site = Site::new(Config::default());
    for arguments in [
        vec!["serve", "--coers", "2"],
        vec!["upsert", "key"],
        vec!["partition", "add", "--range", "9..9"],
        vec!["partition", "add", "--range", "later"],
        vec!["frobnicate"],
    ] {
        let ran = stateside(&site, &arguments);
        ran.failed_with(2, &[]);
        assert!(ran.stdout.is_empty(), "{ran:?}");
    }
}

#[test]
fn a_node_that_is_not_there_is_named_with_its_address() {
    let site = Site::new(Config::default());
    stateside(&site, ["get", "key", "--timeout", "2s"]).failed_with(3, &[&site.data_address()]);
    stateside(&site, ["status", "--timeout", "2s"]).failed_with(3, &[&site.control_address()]);
}

/// A system call filter, as container runtimes set one.
mod seccomp {
    use std::io;

    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Where a filter finds the number of the system call, and the low half of its second
    /// argument, in `seccomp_data`.
    const NUMBER: u32 = 0;
    const SECOND_ARGUMENT: u32 = 24;

    const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }

    const fn fail_with(errno: i32) -> libc::sock_filter {
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32)
    }

    const ALLOW: libc::sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);

    /// Makes io_uring_setup fail with EPERM from here on.
    pub(super) fn forbid_io_uring() -> io::Result<()> {
        set(&mut [
            instruction(LOAD, 0, 0, NUMBER),
            instruction(JUMP_IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
            fail_with(libc::EPERM),
            ALLOW,
        ])
    }

    /// Makes the registration of buffers with an io_uring fail with ENOMEM from here on, as a low
    /// limit of locked memory does.
    pub(super) fn forbid_registered_buffers() -> io::Result<()> {
        const IORING_REGISTER_BUFFERS: u32 = 0;
        set(&mut [
            instruction(LOAD, 0, 0, NUMBER),
            instruction(JUMP_IF_EQUAL, 0, 3, libc::SYS_io_uring_register as u32),
            instruction(LOAD, 0, 0, SECOND_ARGUMENT),
            instruction(JUMP_IF_EQUAL, 0, 1, IORING_REGISTER_BUFFERS),
            fail_with(libc::ENOMEM),
            ALLOW,
        ])
    }

    fn set(program: &mut [libc::sock_filter]) -> io::Result<()> {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: both calls take numbers and a pointer to a program that outlives them.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
                    != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
