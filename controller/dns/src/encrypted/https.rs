//! DNS over HTTPS: HTTP/2, `POST` with the message as body or `GET` with it in base64url (RFC 8484 section 4.1).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Front};
use crate::metrics::Transport;

/// The path of RFC 8484's examples, which clients use unless told otherwise.
const PATH: &str = "/dns-query";
const MESSAGE: &str = "application/dns-message";
/// Longer questions are refused: with every option in the field they stay far below.
const QUESTION_MAX: usize = 4096;
/// Bytes of a question that may come before they have been looked at.
const WINDOW: u32 = 4096;
/// Headers of a request, `GET` with the longest question included.
const HEADERS_MAX: u32 = 16 << 10;

/// Serves until the client closes, or has been silent for too long. Frames that are no requests do not count: a client
/// that only pings is closed too.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
    front: &Arc<Front>,
) -> Result<(), h2::Error> {
    let limits = front.limits;
    let streams = u32::try_from(limits.questions_per_connection).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(streams)
        .max_header_list_size(HEADERS_MAX)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(64 << 10);
    let Ok(connection) = timeout(limits.handshake, builder.handshake::<_, Bytes>(stream)).await else {
        return Err(Reason::SETTINGS_TIMEOUT.into());
    };
    let mut connection = connection?;
    let (mut asked, mut quiet_since) = (JoinSet::new(), Instant::now());
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request?;
                quiet_since = Instant::now();
                let front = Arc::clone(front);
                asked.spawn(async move { timeout(front.limits.idle, answer(request, respond, client, &front)).await });
            }
            Some(_) = asked.join_next() => quiet_since = Instant::now(),
            () = sleep_until(quiet_since + limits.idle), if asked.is_empty() => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                return timeout(limits.idle, poll_fn(|cx| connection.poll_closed(cx)))
                    .await
                    .unwrap_or(Ok(()));
            }
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    client: SocketAddr,
    front: &Front,
) -> Result<(), h2::Error> {
    let message = match question(request).await {
        Ok(message) => message,
        Err(status) => return refuse(&mut respond, status),
    };
    let Answer::Message(message, _share) = front.ask(message, Transport::Https, client).await else {
        return refuse(&mut respond, StatusCode::BAD_REQUEST);
    };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MESSAGE));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(message.len()));
    // An answer from a cache on the way would open nothing here.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    send(respond.send_response(response, false)?, message.into()).await
}

/// As the client takes it: what h2 itself holds back for want of a window is bounded by nothing.
async fn send(mut stream: SendStream<Bytes>, mut message: Bytes) -> Result<(), h2::Error> {
    stream.reserve_capacity(message.len());
    while !message.is_empty() {
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        let part = message.split_to(room?.min(message.len()));
        stream.send_data(part, message.is_empty())?;
    }
    Ok(())
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    respond.send_response(response, true).map(drop)
}

/// The message of a request, or why there is none.
async fn question(request: Request<RecvStream>) -> Result<Vec<u8>, StatusCode> {
    if request.uri().path() != PATH {
        return Err(StatusCode::NOT_FOUND);
    }
    match *request.method() {
        Method::GET => {
            let query = request.uri().query().unwrap_or_default();
            let coded = query.split('&').find_map(|pair| pair.strip_prefix("dns="));
            let message = coded.and_then(base64url).ok_or(StatusCode::BAD_REQUEST)?;
            if message.len() > QUESTION_MAX { Err(StatusCode::URI_TOO_LONG) } else { Ok(message) }
        }
        Method::POST => {
            let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
            if kind != Some(MESSAGE.as_bytes()) {
                return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
            }
            body(request.into_body()).await
        }
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    }
}

async fn body(mut stream: RecvStream) -> Result<Vec<u8>, StatusCode> {
    let mut message = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part.map_err(|_| StatusCode::BAD_REQUEST)?;
        if message.len() + part.len() > QUESTION_MAX {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        message.extend_from_slice(&part);
        stream.flow_control().release_capacity(part.len()).map_err(|_| StatusCode::BAD_REQUEST)?;
    }
    Ok(message)
}

/// Without padding (RFC 8484 section 4.1.1, RFC 4648 section 5).
fn base64url(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() * 3 / 4), 0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    // A single letter is no byte, and what is left over is zero.
    (count < 6 && bits & ((1 << count) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64url;

    #[test]
    fn base64url_is_read_as_the_rfc_writes_it() {
        // RFC 4648 section 10, without padding, and the two letters of section 5.
        for (text, bytes) in
            [("", &b""[..]), ("Zg", b"f"), ("Zm8", b"fo"), ("Zm9v", b"foo"), ("-_8", &[0xfb, 0xff])]
        {
            assert_eq!(base64url(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["A", "Zg==", "Zh", "a+/b", "ä", "Zm9vA"] {
            assert_eq!(base64url(text), None, "{text}");
        }
    }
}
