//! The host's side against the agent's server with an operating system in memory: what a real machine does only by accident.

use lcow_agent::fake::FakeOs;
use lcow_protocol::{HELLO_LEN, Hello, Role, ScsiAddress};
use lcow_uvm::vmm::{ByteStream, LaunchPlan, NewDisk, VirtualMachine, Vmm};
use lcow_uvm::{
    Accel, DiskSpec, ErrorKind, ExitStatus, Machine, MachineConfig, ProcessSpec, UvmError,
};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// How the fake's agent behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Agent {
    Good,
    /// Says nothing at all.
    Silent,
    /// Answers the handshake with something else.
    Stranger,
    /// Answers the handshake for another nonce.
    Echo,
    /// Shakes hands, then closes.
    Dies,
    /// Shakes hands, then sends what is no yamux frame.
    Garbles,
}

struct FakeVmm {
    agent: Agent,
    os: FakeOs,
    disks: Arc<Mutex<Vec<String>>>,
}

impl FakeVmm {
    fn new(agent: Agent) -> Self {
        Self {
            agent,
            os: FakeOs::new(),
            disks: Arc::default(),
        }
    }
}

struct FakeVm {
    agent: Agent,
    os: FakeOs,
    disks: Arc<Mutex<Vec<String>>>,
    ended: Mutex<Option<String>>,
}

impl Vmm for FakeVmm {
    fn launch(&self, _: LaunchPlan) -> Result<Box<dyn VirtualMachine>, UvmError> {
        Ok(Box::new(FakeVm {
            agent: self.agent,
            os: self.os.clone(),
            disks: self.disks.clone(),
            ended: Mutex::new(None),
        }))
    }
}

async fn agent(kind: Agent, os: FakeOs, mut socket: DuplexStream) {
    let mut bytes = [0; HELLO_LEN];
    if socket.read_exact(&mut bytes).await.is_err() || kind == Agent::Silent {
        return std::future::pending().await;
    }
    let mut nonce = Hello::decode(Role::Host, &bytes).unwrap().nonce;
    if kind == Agent::Echo {
        nonce[0] ^= 1;
    }
    let mut answer = Hello {
        role: Role::Guest,
        nonce,
    }
    .encode();
    if kind == Agent::Stranger {
        answer[0] ^= 1;
    }
    socket.write_all(&answer).await.unwrap();
    match kind {
        Agent::Dies => {}
        Agent::Garbles => {
            let _ = socket.write_all(&[0xff; 4096]).await;
            std::future::pending::<()>().await;
        }
        _ => lcow_agent::server::serve(os, socket.compat()).await,
    }
}

impl VirtualMachine for FakeVm {
    fn connect(&self) -> Result<Box<dyn ByteStream>, UvmError> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(agent(self.agent, self.os.clone(), theirs));
        Ok(Box::new(ours))
    }

    fn add_disks(&self, disks: Vec<NewDisk>, _: Duration) -> Result<Vec<ScsiAddress>, UvmError> {
        let mut table = self.disks.lock().unwrap();
        let first = table.len();
        table.extend(disks.into_iter().map(|disk| disk.serial));
        Ok((first..table.len())
            .map(|lun| ScsiAddress {
                target: 0,
                lun: lun as u16,
            })
            .collect())
    }

    fn remove_disks(&self, disks: &[ScsiAddress], _: Duration) -> Result<(), UvmError> {
        let mut table = self.disks.lock().unwrap();
        for disk in disks {
            table[usize::from(disk.lun)].clear();
        }
        Ok(())
    }

    fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap().clone()
    }

    fn stop(&self, _: Duration) -> Result<(), UvmError> {
        self.kill();
        Ok(())
    }

    fn kill(&self) {
        self.ended.lock().unwrap().get_or_insert("ended".into());
    }

    fn process_id(&self) -> Option<u32> {
        None
    }

    fn diagnostics(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![("console.log", b"fake console\n".to_vec())]
    }
}

/// A configuration whose boot files are empty: the fake boots nothing.
fn config(dir: &Path) -> MachineConfig {
    let (kernel, initrd) = (dir.join("kernel"), dir.join("initrd"));
    let mut image = vec![0; 1024];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    std::fs::write(&kernel, image).unwrap();
    std::fs::write(&initrd, b"").unwrap();
    MachineConfig {
        kernel: Some(kernel),
        initrd: Some(initrd),
        accel: Accel::Tcg,
        timeout: Duration::from_secs(3),
        ..MachineConfig::new(dir.join("uvm"))
    }
}

fn disk(dir: &Path, serial: &str) -> DiskSpec {
    let path = dir.join(format!("disk-{serial}"));
    std::fs::write(&path, [0; 4096]).unwrap();
    DiskSpec {
        file: std::fs::File::open(path).unwrap(),
        format: lcow_uvm::DiskFormat::Raw,
        bytes: 4096,
        read_only: false,
        serial: serial.into(),
    }
}

#[test]
fn a_machine_works_and_goes_down_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = FakeVmm::new(Agent::Good);
    let machine = Machine::start_with(&vmm, &config(dir.path())).unwrap();
    assert_eq!(machine.info().kernel, "fake");
    let disks = machine
        .attach(vec![disk(dir.path(), "a"), disk(dir.path(), "b")])
        .unwrap();
    let root = machine.container_root(&disks[..1], Some(disks[1])).unwrap();
    let mut spec = ProcessSpec::new(Some(root), ["cat"]);
    spec.stdin = true;
    let mut process = machine.exec(&spec).unwrap();
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(b"there and back").unwrap();
    drop(stdin);
    let mut text = String::new();
    process
        .take_stdout()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), process.wait().unwrap()),
        ("there and back", ExitStatus::Code(0))
    );
    let busy = machine
        .exec(&ProcessSpec::new(Some(root), ["sleep"]))
        .unwrap();
    assert_eq!(
        machine
            .remove_union(root)
            .unwrap_err()
            .remote()
            .unwrap()
            .kind,
        ErrorKind::Busy
    );
    machine.power_off().unwrap();
    assert!(busy.wait().is_err() || busy.wait().unwrap() == ExitStatus::Signal(9));
    let state = vmm.os.state();
    assert!(state.disks.is_empty() && state.unions.is_empty());
    let order: Vec<&str> = state.history.iter().map(String::as_str).collect();
    let at = |what: &str| {
        order
            .iter()
            .position(|entry| entry.starts_with(what))
            .unwrap()
    };
    assert!(
        at("take apart") < at("unmount") && at("unmount") < at("sync"),
        "{order:?}"
    );
}

#[test]
fn a_batch_is_mounted_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = FakeVmm::new(Agent::Good);
    let machine = Machine::start_with(&vmm, &config(dir.path())).unwrap();
    let error = machine
        .attach(vec![disk(dir.path(), "good"), disk(dir.path(), "bad")])
        .unwrap_err();
    assert_eq!(error.remote().unwrap().kind, ErrorKind::Corrupt);
    assert!(vmm.os.state().disks.is_empty());
    assert!(
        vmm.disks.lock().unwrap().iter().all(String::is_empty),
        "a disk stays added"
    );
    for (bytes, serial) in [
        (100, "x"),
        (8192, "x"),
        (4096, "not-plain"),
        (4096, "longerthantwentyletters"),
    ] {
        let mut spec = disk(dir.path(), "z");
        (spec.bytes, spec.serial) = (bytes, serial.into());
        assert!(
            matches!(machine.attach(vec![spec]), Err(UvmError::BadOption { .. })),
            "{bytes} {serial}"
        );
    }
}

#[test]
fn a_fault_in_the_agent_is_an_error_of_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::start_with(&FakeVmm::new(Agent::Good), &config(dir.path())).unwrap();
    let error = machine
        .exec(&ProcessSpec::new(None, ["panic"]))
        .unwrap_err();
    assert_eq!(error.remote().unwrap().kind, ErrorKind::Internal, "{error}");
    assert_eq!(
        machine
            .exec(&ProcessSpec::new(None, ["nothing"]))
            .unwrap_err()
            .shell_exit_code(),
        Some(127)
    );
    let process = machine
        .exec(&ProcessSpec::new(None, ["exit", "3"]))
        .unwrap();
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(3));
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(3), "asked twice");
}

#[test]
fn an_agent_that_is_none_is_told_before_the_deadline() {
    for (agent, expected) in [
        (Agent::Silent, "took longer"),
        (Agent::Stranger, "handshake"),
        (Agent::Echo, "handshake"),
        (Agent::Dies, "gone"),
        (Agent::Garbles, "gone"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let error = Machine::start_with(&FakeVmm::new(agent), &config(dir.path())).unwrap_err();
        assert!(error.to_string().contains(expected), "{agent:?}: {error}");
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{agent:?}: {:?}",
            began.elapsed()
        );
        let bundle = error.bundle().unwrap();
        assert_eq!(
            std::fs::read(bundle.join("console.log")).unwrap(),
            b"fake console\n"
        );
    }
}

#[test]
fn a_vhdx_is_looked_at_before_it_is_attached() {
    use lcow_blockio::{FileDisk, MemDisk, WriteAt};
    use lcow_disk::vhdx::{self, CreateOptions, Guid};
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::start_with(&FakeVmm::new(Agent::Good), &config(dir.path())).unwrap();
    let blank = MemDisk::new();
    vhdx::create(&blank, &CreateOptions::new(64 << 20, Guid([1; 16]))).unwrap();
    let blank = blank.into_bytes();
    let attach = |bytes: u64, read_only: bool, spoil: &dyn Fn(&FileDisk)| {
        let path = dir.path().join("vhdx");
        std::fs::write(&path, &blank).unwrap();
        let file = || std::fs::File::options().read(true).write(true).open(&path);
        spoil(&FileDisk::from(file().unwrap()));
        machine.attach(vec![DiskSpec {
            file: file().unwrap(),
            format: lcow_uvm::DiskFormat::Vhdx,
            bytes,
            read_only,
            serial: String::new(),
        }])
    };
    let size = 64 << 20;
    let disks = attach(size, false, &|_| ()).unwrap();
    // After it, it is looked at again.
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("vhdx"))
        .unwrap();
    FileDisk::from(file)
        .write_all_at(3 << 20, &[0xff; 8])
        .unwrap();
    let error = machine.detach(&disks).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("damaged after it was detached"), "{text}");

    assert!(matches!(
        attach(size - 512, false, &|_| ()),
        Err(UvmError::BadOption { .. })
    ));
    let damaged = |result: Result<_, UvmError>, words: &str| match result.unwrap_err() {
        UvmError::DamagedDisk { when, detail } => {
            assert!(detail.contains(words), "{detail}");
            assert_eq!(when, "before it is attached");
        }
        other => panic!("{other}"),
    };
    let entry = |disk: &FileDisk| disk.write_all_at(3 << 20, &[0xff; 8]).unwrap();
    damaged(attach(size, false, &entry), "block");
    let cut = |disk: &FileDisk| disk.set_len(100).unwrap();
    damaged(attach(size, true, &cut), "");
    // What is only in a log, nobody can read who may not write.
    let crash = |disk: &FileDisk| {
        let disk = vhdx::open_writable(disk, [[2; 16], [3; 16], [4; 16]].into()).unwrap();
        disk.write_all_at(0, &[7; 512]).unwrap();
        disk.sync().unwrap();
    };
    damaged(attach(size, true, &crash), "log");
    let disks = attach(size, false, &crash).unwrap();
    machine.detach(&disks).unwrap();
}
