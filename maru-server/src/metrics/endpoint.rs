//! Where the metrics are fetched: `GET /metrics` on an address and a thread of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::{Snapshot, exposition};

/// How long one connection may take, from its first byte to its last.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How long the serving thread may take to make a snapshot.
const SNAPSHOT_TIME: Duration = Duration::from_secs(5);
/// Connections at a time; those that follow wait to be accepted.
const CONNECTIONS: usize = 32;
/// How long it is waited before an address that is taken is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Rung for a snapshot, which is to be sent through it.
pub(crate) type Bell = oneshot::Sender<Snapshot>;

/// Serves the metrics until nobody answers the bells any more. An address that can't be had is tried again and again: what
/// the server is there for does not depend on it.
///
/// # Errors
/// Where the system has no thread for it.
pub(crate) fn start(address: SocketAddr, bells: mpsc::Sender<Bell>) -> io::Result<()> {
    let listener = listen(address);
    match &listener {
        Ok(listener) => info!(metrics = %listener.local_addr()?, "metrics are to be had"),
        Err(error) => {
            error!(%address, %error, "no metrics: can't listen there, trying again every {RETRY:?}");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = move || runtime.block_on(serve(address, listener.ok(), &bells));
    std::thread::Builder::new().name("metrics".to_owned()).spawn(serve).map(drop)
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(address: SocketAddr, listener: Option<std::net::TcpListener>, bells: &mpsc::Sender<Bell>) {
    let listener = match listener {
        Some(listener) => listener,
        None => tokio::select! {
            listener = listen_at_last(address) => listener,
            () = bells.closed() => return,
        },
    };
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "no metrics: their listener can't be used"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the places are never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = bells.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let bells = bells.clone();
                tokio::spawn(async move {
                    if timeout(CONNECTION_TIME, answer(stream, bells)).await.is_err() {
                        debug!("closing a connection for metrics that took too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "can't accept connections for metrics for now");
                sleep(RETRY).await;
            }
        }
    }
}

async fn listen_at_last(address: SocketAddr) -> std::net::TcpListener {
    loop {
        sleep(RETRY).await;
        match listen(address) {
            Ok(listener) => {
                info!(%address, "metrics are to be had at last");
                return listener;
            }
            Err(error) => debug!(%address, %error, "still no metrics"),
        }
    }
}

/// Answers one request.
async fn answer(stream: TcpStream, bells: mpsc::Sender<Bell>) {
    let service = service_fn(|request| respond(request, &bells));
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "a connection for metrics broke");
    }
}

async fn respond<B>(request: Request<B>, bells: &mpsc::Sender<Bell>) -> Result<Response<String>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match snapshot(bells).await.map(exposition::text) {
            Some(Ok(text)) => with(Response::new(text), CONTENT_TYPE, exposition::CONTENT_TYPE),
            _ => no(StatusCode::SERVICE_UNAVAILABLE, "the server does not answer; it may be stopping\n"),
        },
        (_, "/metrics") => {
            with(no(StatusCode::METHOD_NOT_ALLOWED, "metrics are only to be read\n"), ALLOW, "GET, HEAD")
        }
        _ => no(StatusCode::NOT_FOUND, "there is nothing here but /metrics\n"),
    })
}

fn with(mut response: Response<String>, name: HeaderName, value: &'static str) -> Response<String> {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

fn no(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

/// Rings for a snapshot; `None` where the serving thread has ended or is busy with ending.
async fn snapshot(bells: &mpsc::Sender<Bell>) -> Option<Snapshot> {
    let ring = async {
        let (bell, answer) = oneshot::channel();
        bells.send(bell).await.ok()?;
        answer.await.ok()
    };
    timeout(SNAPSHOT_TIME, ring).await.ok().flatten()
}
