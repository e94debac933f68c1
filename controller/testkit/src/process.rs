//! Child processes that end with their guard.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::cleanup::{OWNER_VARIABLE, kill, prepare_process, registry};

/// A running program; killed (SIGKILL, by pid) and reaped on drop. Its standard output and error are read all
/// the time and kept as lines.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    lines: Arc<Lines>,
}

/// What a program prints, for who follows it; stays when the program is gone.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Lines>);

/// A line and when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: SystemTime,
    pub(crate) text: String,
}

#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
    /// The same for who cannot wait on a thread.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct LinesState {
    lines: Vec<Line>,
    open_streams: usize,
}

impl Output {
    /// Lines from the one with this number on, and whether no more can come.
    pub(crate) fn since(&self, number: usize) -> (Vec<Line>, bool) {
        let state = self.0.lock();
        (state.lines.get(number..).unwrap_or_default().to_vec(), state.open_streams == 0)
    }

    /// Changes whenever there is more to see.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_from(self: &Arc<Self>, stream: impl Read + Send + 'static) -> Result<()> {
        self.lock().open_streams += 1;
        let lines = Arc::clone(self);
        std::thread::Builder::new().name("testkit-output".to_owned()).spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lines.change(|state| state.lines.push(Line { at: SystemTime::now(), text }));
                line.clear();
            }
            lines.change(|state| state.open_streams -= 1);
        })?;
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut LinesState)) {
        change(&mut self.lock());
        self.changed.notify_all();
        self.changes.send_replace(());
    }

    /// Waits until both streams have ended.
    fn wait_for_end(&self, patience: Duration) {
        let state = self.lock();
        let open = |state: &mut LinesState| state.open_streams > 0;
        let result = self.changed.wait_timeout_while(state, patience, open);
        drop(result.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Process {
    /// Starts a command, usually from [`crate::Netns::command`] or [`crate::Netns::exec`].
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn_with_stdin(command)
    }

    /// As [`Process::spawn`], with a standard input that says nothing and closes when this value or this process ends.
    pub(crate) fn spawn_with_open_stdin(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        Self::spawn_with_stdin(command)
    }

    fn spawn_with_stdin(mut command: Command) -> Result<Self> {
        prepare_process()?;
        let name = command.get_program().to_string_lossy().into_owned();
        command.env(OWNER_VARIABLE, std::process::id().to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut registry = registry();
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        registry.children.insert(child.id());
        drop(registry);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let process = Self { child, name, lines: Arc::default() };
        if let Some(stdout) = stdout {
            process.lines.read_from(stdout)?;
        }
        if let Some(stderr) = stderr {
            process.lines.read_from(stderr)?;
        }
        Ok(process)
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, standard output and error as they came, one line each.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().lines.iter().map(|line| line.text.clone()).collect()
    }

    /// The same as it goes on.
    pub(crate) fn output(&self) -> Output {
        Output(Arc::clone(&self.lines))
    }

    /// Waits until it has printed a line that contains `needle` and gives that line. Also finds lines that
    /// were there before. An error has everything it printed.
    pub fn wait_for_line(&self, needle: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut state = self.lines.lock();
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.text.contains(needle)) {
                return Ok(line.text.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.open_streams == 0 {
                let why = if state.open_streams == 0 { "ended" } else { "is silent" };
                drop(state);
                let printed = self.lines().join("\n");
                bail!("{} {why} without printing {needle:?}; it printed:\n{printed}", self.name);
            }
            state = self.lines.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end, and for what it printed last: that reaches [`Process::lines`] by threads of their own. (A
    /// child of its own may keep the streams open, so that wait is short.)
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.try_wait()? {
                self.lines.wait_for_end(Duration::from_secs(1));
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs; it printed:\n{}", self.name, self.lines().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        // Under the lock, so that the signal thread never kills a pid that has been reaped and given away.
        let mut registry = registry();
        let status = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))?;
        if status.is_some() {
            registry.children.remove(&self.child.id());
        }
        Ok(status)
    }

    /// SIGTERM, then its end.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(patience)
    }

    /// SIGKILL, then its end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.try_wait(), Ok(Some(_))) {
            kill(self.child.id());
            let mut registry = registry();
            let _ = self.child.wait();
            registry.children.remove(&self.child.id());
        }
    }
}
