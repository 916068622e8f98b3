//! A server of a test's own: started on a socket in a folder of its own, and gone with the test.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Far more than any test takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// More than any start takes; beyond it something is broken.
const START_TRIES: u32 = 6000;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// The daemon, running.
pub(crate) struct Served {
    pub(crate) child: Child,
    folder: PathBuf,
    _life: Sender<()>,
}

impl Served {
    /// Starts what `command` says for a socket, and waits until that is served.
    pub(crate) fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self, String> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("served-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let child = command(&folder.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let _life = limit(child.id());
        let mut served = Self {
            child,
            folder,
            _life,
        };
        served.await_socket()?;
        Ok(served)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn await_socket(&mut self) -> Result<(), String> {
        for _ in 0..START_TRIES {
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the daemon ended: {status}"));
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        Err("the daemon does not serve its socket".to_owned())
    }
}

/// Kills a daemon that lives longer than any test should, so that nobody waits for it for ever. It ends with what it gives.
fn limit(pid: u32) -> Sender<()> {
    let (life, ended) = channel();
    std::thread::spawn(move || {
        let waited = ended.recv_timeout(PATIENCE);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let (Err(RecvTimeoutError::Timeout), Some(pid)) = (waited, pid) {
            // What cannot be killed has gone already.
            let _gone = kill_process(pid, Signal::KILL);
        }
    });
    life
}

impl Drop for Served {
    fn drop(&mut self) {
        // What cannot be killed or removed has gone already.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
