//! DNS over TLS: messages as by TCP (RFC 7766), any number on a connection, answered as answers come.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Front};
use crate::metrics::Transport;
use crate::upstream::tcp::frame;
use crate::wire;

/// Serves until the client asks no more and has its answers, or has been silent for too long.
pub(super) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
    front: &Arc<Front>,
) -> io::Result<()> {
    let limits = front.limits;
    let (mut buffer, mut asked) = (Vec::new(), JoinSet::new());
    let (mut is_finished, mut quiet_since) = (false, Instant::now());
    while !(is_finished && asked.is_empty()) {
        let has_room = asked.len() < limits.questions_per_connection;
        tokio::select! {
            message = next(&mut stream, &mut buffer), if has_room && !is_finished => match message? {
                Some(message) => {
                    quiet_since = Instant::now();
                    let front = Arc::clone(front);
                    asked.spawn(async move { front.ask(message, Transport::Tls, client).await });
                }
                None => is_finished = true,
            },
            Some(answer) = asked.join_next() => {
                if let Ok(Answer::Message(message, _share)) = answer {
                    let frame = frame(&message)?;
                    let written = timeout(limits.idle, async {
                        stream.write_all(&frame).await?;
                        stream.flush().await
                    });
                    written.await.map_err(|_| io::ErrorKind::TimedOut)??;
                }
                quiet_since = Instant::now();
            }
            () = sleep_until(quiet_since + limits.idle), if asked.is_empty() => break,
        }
    }
    timeout(limits.idle, stream.shutdown()).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The next whole message; `None`: the client asks no more. Can be cancelled without loss, as what has come is in the
/// buffer.
async fn next(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(length) = wire::u16_at(buffer, 0) {
            let end = 2 + usize::from(length);
            if buffer.len() >= end {
                let message = buffer.get(2..end).unwrap_or_default().to_vec();
                buffer.drain(..end);
                return Ok(Some(message));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
