//! A store that speaks S3 over HTTP, in this process, on a free port, with its objects in a directory.
//!
//! It is `s3s-fs` behind a lock per object, since that looks whether an object is there and then writes it,
//! and a create-only put must not be beaten between the two. Where a file system is no store, it answers as a
//! store would: a bucket that is not there is no bucket, and a directory no object. What goes wrong is told
//! it: see [`S3Server::trouble`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::IF_NONE_MATCH;
use hyper::service::Service;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinHandle;

/// The bucket that is there.
pub const BUCKET: &str = "backups";

/// The access key that is known.
pub const ACCESS_KEY: &str = "AKIDSNAPKIT";

/// The secret key that belongs to it.
pub const SECRET_KEY: &str = "the-secret-of-the-test-server";

/// A request, as far as trouble depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Request {
    /// `GET`, `PUT`, `DELETE`, `HEAD` or `POST`.
    pub method: String,
    /// The path with the bucket and the query, as it was sent.
    pub target: String,
    /// Whether it is a create-only put.
    pub create_only: bool,
    /// The encryption by the store that it asks for.
    pub encryption: Option<String>,
    /// How many requests came before it.
    pub number: u64,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum S3Trouble {
    /// It is answered with this status and this code of S3, and nothing is done.
    Answer(u16, &'static str),
    /// The connection is closed, and nothing is done.
    Drop,
    /// It is done, and the connection is closed instead of an answer.
    DropAnswer,
    /// It is done after so long.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// It is done as if it were under no condition.
    Unconditional,
}

type Decide = Arc<dyn Fn(&S3Request) -> Option<S3Trouble> + Send + Sync>;

#[derive(Default)]
struct State {
    decide: Option<Decide>,
    seen: Vec<S3Request>,
    locks: BTreeMap<String, Arc<AsyncMutex<()>>>,
}

/// A running server. Dropped, it is gone, and its objects with it.
pub struct S3Server {
    address: SocketAddr,
    root: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl S3Server {
    /// Start one with an empty bucket [`BUCKET`].
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub async fn start() -> std::io::Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join(BUCKET))?;
        let files = FileSystem::new(root.path())
            .map_err(|e| std::io::Error::other(format!("cannot serve a directory: {e:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let directory = root.path().to_owned();
        let troubled = Troubled { inner: service.build(), state: Arc::clone(&state), directory };
        #[expect(clippy::disallowed_methods, reason = "a server is no part of what is tested")]
        let task = tokio::spawn(serve(listener, troubled));
        Ok(Self { address, root, state, task })
    }

    /// What a client needs, by the names of the usual variables.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The directory that the objects of the bucket are in.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// From now on ask this what goes wrong with each request.
    pub fn trouble(
        &self,
        decide: impl Fn(&S3Request) -> Option<S3Trouble> + Send + Sync + 'static,
    ) {
        lock(&self.state).decide = Some(Arc::new(decide));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        lock(&self.state).decide = None;
    }

    /// The requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<S3Request> {
        lock(&self.state).seen.clone()
    }

    /// The keys of all objects.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        collect(&self.directory(), &self.directory(), &mut keys);
        keys
    }
}

fn collect(root: &Path, dir: &Path, keys: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, keys);
        } else if let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str) {
            keys.insert(key.to_owned());
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for S3Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Server").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn serve(listener: TcpListener, service: Troubled) {
    let builder = Builder::new(TokioExecutor::new());
    let mut open = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let connection =
            builder.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        open.spawn(async move { drop(connection.await) });
        while open.try_join_next().is_some() {}
    }
}

/// The store, and what goes wrong with it.
#[derive(Clone)]
struct Troubled {
    inner: S3Service,
    state: Arc<Mutex<State>>,
    directory: PathBuf,
}

impl Troubled {
    /// What a store answers and a directory does not.
    fn unlike_a_directory(&self, request: &Request<Incoming>) -> Option<Answer> {
        let path = request.uri().path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return Some(answer(404, "NoSuchBucket"));
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE);
        if !reads || key.is_empty() || !self.directory.join(bucket).join(key).is_dir() {
            return None;
        }
        Some(match *request.method() {
            Method::DELETE => answer(204, ""),
            _ => answer(404, "NoSuchKey"),
        })
    }
}

type Answer = Result<Response<Body>, HttpError>;

impl Service<Request<Incoming>> for Troubled {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (trouble, key_lock) = {
            let mut state = lock(&self.state);
            let seen = S3Request {
                method: request.method().to_string(),
                target: request.uri().to_string(),
                create_only: request.headers().contains_key(IF_NONE_MATCH)
                    && request.method() == Method::PUT,
                encryption: request
                    .headers()
                    .get("x-amz-server-side-encryption")
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned),
                number: state.seen.len() as u64,
            };
            let trouble = state.decide.as_ref().and_then(|decide| decide(&seen));
            let path = request.uri().path().to_owned();
            let key_lock = Arc::clone(state.locks.entry(path).or_default());
            state.seen.push(seen);
            (trouble, key_lock)
        };
        // The condition is signed: what it asks for is taken away instead.
        let in_the_way = (trouble == Some(S3Trouble::Unconditional))
            .then(|| self.directory.join(request.uri().path().trim_start_matches('/')));
        let inner = self.inner.clone();
        let instead = self.unlike_a_directory(&request);
        let done = async move {
            if let Some(answer) = instead {
                return answer;
            }
            let _one = key_lock.lock().await;
            if let Some(object) = in_the_way {
                drop(std::fs::remove_file(object));
            }
            inner.call(request.map(Body::from)).await
        };
        Box::pin(async move {
            match trouble {
                None | Some(S3Trouble::Unconditional) => done.await,
                Some(S3Trouble::Answer(status, code)) => answer(status, code),
                Some(S3Trouble::Drop) => Err(closed()),
                Some(S3Trouble::DropAnswer) => {
                    drop(done.await);
                    Err(closed())
                }
                #[expect(clippy::disallowed_methods, reason = "a server has its own time")]
                Some(S3Trouble::Delay(time)) => {
                    tokio::time::sleep(time).await;
                    done.await
                }
                Some(S3Trouble::Hang) => std::future::pending().await,
            }
        })
    }
}

fn closed() -> HttpError {
    HttpError::new(Box::new(std::io::Error::other("the connection is closed")))
}

fn answer(status: u16, code: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>because \
         the test says so</Message></Error>"
    );
    Response::builder()
        .status(status)
        .body(Body::from(text))
        .map_err(|e| HttpError::new(Box::new(e)))
}
