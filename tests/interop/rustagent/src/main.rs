//! An agent on the crates `yamux` and `tungstenite`, for the tests of the daemon's end: it serves HTTP over its streams.
//! Its yamux acknowledges a stream with its own first frame on it, so never before it has read a request.
//!
//! rustagent URL TOKEN. Writes a JSON line for each event. Routes: see `answer`.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures_util::{Sink, Stream};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{client_async, WebSocketStream};
use yamux::{Config, Connection, Mode};

/// The binary messages of a WebSocket as one stream of bytes.
struct WsBytes {
    ws: WebSocketStream<TcpStream>,
    rest: Bytes,
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

impl AsyncRead for WsBytes {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.ws).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.rest = data,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let size = buf.len().min(self.rest.len());
        buf[..size].copy_from_slice(&self.rest.split_to(size));
        Poll::Ready(Ok(size))
    }
}

impl AsyncWrite for WsBytes {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.ws).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(buf));
        Pin::new(&mut self.ws).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_flush(cx).map_err(broken)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_close(cx).map_err(broken)
    }
}

/// Requests one after the other, until the stream ends.
async fn serve(mut stream: yamux::Stream) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut piece = vec![0; 65536];
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let size = stream.read(&mut piece).await?;
            if size == 0 {
                return stream.close().await;
            }
            buffer.extend_from_slice(&piece[..size]);
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0);
        buffer.drain(..end);
        let mut left: usize = length;
        let mut sum: u64 = 0;
        while left > 0 {
            if buffer.is_empty() {
                let size = stream.read(&mut piece).await?;
                if size == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer.extend_from_slice(&piece[..size]);
            }
            let size = left.min(buffer.len());
            sum += buffer.drain(..size).map(u64::from).sum::<u64>();
            left -= size;
        }
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let body = answer(&path, length, sum).await;
        let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(start.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
    }
}

/// `/sum`: the request body's length and the sum of its bytes. `/bytes/N`: so many. `/slow/MS`: after so long.
async fn answer(path: &str, length: usize, sum: u64) -> Vec<u8> {
    let (route, number) = path.rsplit_once('/').unwrap_or(("", ""));
    let number: u64 = number.parse().unwrap_or(0);
    match route {
        "/bytes" => (0..number).map(|at| (at % 251) as u8).collect(),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(number)).await;
            b"at last".to_vec()
        }
        _ if path == "/sum" => format!("{length} {sum}").into_bytes(),
        _ => b"ok".to_vec(),
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (url, token) = (arguments.next().ok_or("no URL")?, arguments.next().ok_or("no token")?);
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
    let authority = request.uri().authority().ok_or("no host")?.to_string();
    let (ws, _) = client_async(request, TcpStream::connect(authority).await?).await?;
    println!("{{\"event\":\"connected\"}}");
    let mut connection = Connection::new(WsBytes { ws, rest: Bytes::new() }, Config::default(), Mode::Server);
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        tokio::spawn(serve(stream?));
    }
    println!("{{\"event\":\"closed\"}}");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}
