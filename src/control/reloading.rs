//! Reloads, on a thread of their own: a file system that does not answer holds up nothing else.

use super::{Reload, Reloaded};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// Time after which a slow reload is logged. It is waited for all the same, and holds up only the next reload.
const PATIENCE: Duration = Duration::from_secs(10);

type Answer = oneshot::Sender<Result<Reloaded, String>>;

/// See the module's text. One is under way at a time, and one more is remembered.
pub(super) struct Reloads {
    ask: Option<SyncSender<Answer>>,
    under_way: Option<oneshot::Receiver<Result<Reloaded, String>>>,
    /// When to log that the reload takes long; `None` once logged.
    late: Option<Instant>,
    /// Another reload was asked for since this one began: the files may have changed after they were read.
    again: bool,
}

impl Reloads {
    pub(super) fn new(reload: Option<Reload>) -> std::io::Result<Self> {
        let ask = match reload {
            Some(mut reload) => {
                let (ask, asked) = sync_channel::<Answer>(1);
                std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
                    while let Ok(answer) = asked.recv() {
                        // The receiver may be gone: the process ends.
                        let _ = answer.send(reload());
                    }
                })?;
                Some(ask)
            }
            None => None,
        };
        Ok(Self { ask, under_way: None, late: None, again: false })
    }

    /// Begins a reload, or remembers to.
    pub(super) fn begin(&mut self) {
        let Some(ask) = &self.ask else {
            return tracing::warn!("reload asked for, but this process has no configuration file; nothing changed");
        };
        if self.under_way.is_some() {
            self.again = true;
            return tracing::info!("a reload is under way; the files are read again after it");
        }
        let (answer, done) = oneshot::channel();
        if ask.try_send(answer).is_err() {
            return tracing::error!("the reload thread is gone; the configuration in force stays as it was");
        }
        self.under_way = Some(done);
        self.late = Some(Instant::now() + PATIENCE);
    }

    /// The result of the reload under way; waits for ever if there is none. Cancel-safe: nothing is lost if the future is
    /// dropped.
    pub(super) async fn done(&mut self) -> Result<Reloaded, String> {
        let Some(done) = self.under_way.as_mut() else { return std::future::pending().await };
        let answer = loop {
            let Some(late) = self.late else { break done.await };
            tokio::select! {
                answer = &mut *done => break answer,
                () = sleep_until(late) => {
                    self.late = None;
                    tracing::error!(
                        "a reload has not read its files for 10 s: is their file system there? the configuration in force stays, and \
                         all else goes on"
                    );
                }
            }
        };
        self.under_way = None;
        if std::mem::take(&mut self.again) {
            self.begin();
        }
        answer.unwrap_or_else(|_| Err("the reload thread ended before its answer".to_owned()))
    }
}
