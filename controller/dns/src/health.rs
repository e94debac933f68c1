//! The proxy asks itself before it lets nftables send it anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::wire::{self, CLASS_CH, kind};

/// `health.firewall-controller.` in wire format.
pub(crate) const NAME: &[u8] = b"\x06health\x13firewall-controller\x00";
/// How long one transport may take.
const PATIENCE: Duration = Duration::from_millis(250);

/// Which transports answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// UDP over 127.0.0.1.
    pub udp4: bool,
    /// TCP over 127.0.0.1.
    pub tcp4: bool,
    /// UDP over `::1`.
    pub udp6: bool,
    /// TCP over `::1`.
    pub tcp6: bool,
}

/// Asks the proxy on this port over each transport, all at once; takes at most a quarter of a second. Runs on any tokio
/// runtime, also on another thread than the proxy's.
pub async fn probe(port: u16) -> Armed {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    let (udp4, tcp4, udp6, tcp6) = tokio::join!(
        timeout(PATIENCE, ask_udp(v4)),
        timeout(PATIENCE, ask_tcp(v4)),
        timeout(PATIENCE, ask_udp(v6)),
        timeout(PATIENCE, ask_tcp(v6)),
    );
    let good = |result: Result<io::Result<bool>, _>| matches!(result, Ok(Ok(true)));
    Armed { udp4: good(udp4), tcp4: good(tcp4), udp6: good(udp6), tcp6: good(tcp6) }
}

fn question() -> io::Result<Vec<u8>> {
    let mut message = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    getrandom::fill(&mut message[..2]).map_err(io::Error::other)?;
    message.extend(NAME);
    message.extend(kind::TXT.to_be_bytes());
    message.extend(CLASS_CH.to_be_bytes());
    Ok(message)
}

fn is_answer(question: &[u8], answer: &[u8]) -> bool {
    wire::id(answer) == wire::id(question)
        && wire::answers(answer, &question[wire::HEADER..])
        && wire::u16_at(answer, 6) == Some(1)
}

async fn ask_udp(server: SocketAddr) -> io::Result<bool> {
    let socket = UdpSocket::bind(SocketAddr::new(server.ip(), 0)).await?;
    socket.connect(server).await?;
    let question = question()?;
    socket.send(&question).await?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await?;
    Ok(is_answer(&question, &answer[..length]))
}

async fn ask_tcp(server: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(server).await?;
    let question = question()?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question.as_slice()].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(is_answer(&question, &answer))
}

/// What the proxy says to its own question: one TXT record, `ok`.
pub(crate) fn answer(query: &wire::Query<'_>) -> Vec<u8> {
    let mut answer = wire::header_answer(query.message, wire::rcode::NOERROR);
    answer.extend(query.question());
    answer[5] = 1;
    answer[7] = 1;
    answer.extend([0xc0, 12]);
    answer.extend(kind::TXT.to_be_bytes());
    answer.extend(CLASS_CH.to_be_bytes());
    answer.extend([0, 0, 0, 0, 0, 3, 2, b'o', b'k']);
    answer
}

/// Whether a question is the proxy's own: only a loopback address can be the source, and the kernel takes those from
/// `lo` alone.
pub(crate) fn is_ours(query: &wire::Query<'_>, client: SocketAddr) -> bool {
    query.class == CLASS_CH
        && query.kind == kind::TXT
        && query.name().eq_ignore_ascii_case(NAME)
        && client.ip().is_loopback()
}
