//! One question by TCP, for answers that UDP cut short.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::metrics::{Metrics, Spoof};
use crate::wire;

/// Messages that are not the answer after which a connection is given up.
const STRANGERS: usize = 16;

/// Whether an address is one of this box: the kernel then takes the very address asked as its source.
pub(crate) fn is_own(local: io::Result<SocketAddr>, asked: SocketAddr) -> bool {
    local.is_ok_and(|local| local.ip() == asked.ip())
}

/// A message with its length in front (RFC 1035 section 4.2.2).
pub(crate) fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Reads one such message.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Asks; the answer has the question's id and question. The caller bounds the time.
pub(crate) async fn ask(
    server: SocketAddr,
    query: &[u8],
    own_port: u16,
    metrics: &Metrics,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    if server.port() == own_port && is_own(stream.local_addr(), server) {
        return Err(io::Error::other("this is the proxy itself"));
    }
    stream.set_nodelay(true)?;
    stream.write_all(&frame(query)?).await?;
    let question = query.get(wire::HEADER..).and_then(|rest| wire::name_end(rest, 0)).unwrap_or_default();
    let question = query.get(wire::HEADER..wire::HEADER + question + 4).unwrap_or_default();
    for _ in 0..STRANGERS {
        let message = read_frame(&mut stream).await?;
        match wire::check(&message, query, question) {
            Ok(()) => return Ok(message),
            Err(spoof) => metrics.spoof(spoof),
        }
    }
    Err(io::Error::other(Spoof::Id.label()))
}
