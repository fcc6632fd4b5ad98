//! The asking side of the endpoints.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::{Host, Url};

/// Of an answer, no more is read.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// Of a body that is of interest, no more is read.
const MAX_BODY_BYTES: u64 = 16 * 1024 * 1024;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Only `http` addresses with a host can be asked.
    #[error("not an http address. address=`{address}`")]
    Address {
        /// What was given.
        address: String,
    },
    /// Nobody listens there, or the connection broke.
    #[error("no answer. address=`{address}`")]
    Connection {
        /// What was asked.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The answer took too long.
    #[error("no answer in time. address=`{address}`")]
    TimedOut {
        /// What was asked.
        address: String,
    },
    /// The answer is not HTTP.
    #[error("the answer is not HTTP. address=`{address}`")]
    NotHttp {
        /// What was asked.
        address: String,
    },
    /// The answer is no success.
    #[error("unhealthy. address=`{address}` status=`{status}` answer=`{answer}`")]
    Unhealthy {
        /// What was asked.
        address: String,
        /// HTTP status code.
        status: u16,
        /// Body of the answer, in one line.
        answer: String,
    },
}

/// Asks an endpoint once. Returns when it answers with a 2xx.
///
/// Made for the endpoints of [`health`](crate::health) in the same container: plain HTTP/1.1, no redirects, no
/// proxies, so that an image needs neither a shell nor `curl`.
///
/// # Errors
/// Any other answer, or none within `timeout`.
pub async fn probe(address: &str, timeout: Duration) -> Result<(), ProbeError> {
    ask_within(address, timeout, MAX_ANSWER_BYTES).await.map(drop)
}

/// The body of an answer, such as that of `/metrics`; otherwise as [`probe`]. Of a body, 16 MiB are read.
///
/// # Errors
/// As [`probe`].
pub async fn fetch(address: &str, timeout: Duration) -> Result<String, ProbeError> {
    ask_within(address, timeout, MAX_BODY_BYTES).await
}

async fn ask_within(address: &str, timeout: Duration, limit: u64) -> Result<String, ProbeError> {
    let name = || address.to_owned();
    let url = Url::parse(address).map_err(|_| ProbeError::Address { address: name() })?;
    let answer = match (url.scheme(), url.host(), url.port_or_known_default()) {
        ("http", Some(host), Some(port)) => tokio::time::timeout(timeout, ask(&url, host, port, limit)),
        _ => return Err(ProbeError::Address { address: name() }),
    };
    let answer = answer
        .await
        .map_err(|_| ProbeError::TimedOut { address: name() })?
        .map_err(|source| ProbeError::Connection { address: name(), source })?;
    let answer = String::from_utf8_lossy(&answer);
    let status = status_of(&answer).ok_or_else(|| ProbeError::NotHttp { address: name() })?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if (200..300).contains(&status) {
        return Ok(body.to_owned());
    }
    let answer = body.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(ProbeError::Unhealthy { address: name(), status, answer })
}

/// The address of `/livez` of a process on this machine that listens at `listen`.
pub fn livez_at(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}/livez", SocketAddr::new(ip, listen.port()))
}

async fn ask(url: &Url, host: Host<&str>, port: u16, limit: u64) -> io::Result<Vec<u8>> {
    let mut stream = match host {
        Host::Domain(name) => TcpStream::connect((name, port)).await?,
        Host::Ipv4(ip) => TcpStream::connect((ip, port)).await?,
        Host::Ipv6(ip) => TcpStream::connect((ip, port)).await?,
    };
    let request = format!("GET {} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n", url.path());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(limit).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The code in `HTTP/1.1 200 OK`.
fn status_of(answer: &str) -> Option<u16> {
    let line = answer.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.trim_end().get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_goes_to_the_loopback_of_whatever_is_listened_at() {
        for (listen, expected) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080/livez"),
            ("[::]:8080", "http://[::1]:8080/livez"),
            ("10.1.2.3:80", "http://10.1.2.3:80/livez"),
        ] {
            assert_eq!(livez_at(listen.parse().unwrap()), expected);
        }
    }

    #[test]
    fn only_answers_that_begin_as_http_have_a_status() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(200)),
            ("HTTP/1.0 503\r\n\r\n", Some(503)),
            ("HTTP/1.1 2", None),
            ("SSH-2.0-x", None),
            ("", None),
        ] {
            assert_eq!(status_of(answer), expected, "{answer}");
        }
    }
}
