//! Local sinks keep the contract of sinks: on a real disk and on one that forgets, with and without
//! threads.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::sync::Arc;

use snapkit_core::Context;
use snapkit_core::context::{Simulated, Timestamp};
use snapkit_core::progress::Silent;
use snapkit_core::sink::Sink;
use snapkit_sinks::LocalSink;
use snapkit_testkit::double::ForgetfulDisk;
use snapkit_testkit::sink;

fn simulated() -> Context {
    Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent))
}

async fn real_disk(cx: &Context) {
    let scratch = RefCell::new(Vec::new());
    sink::all(cx, async || {
        let dir = tempfile::tempdir().unwrap();
        let sink = LocalSink::create(cx, dir.path().join("a/b")).await.unwrap();
        scratch.borrow_mut().push(dir);
        Arc::new(sink) as Arc<dyn Sink>
    })
    .await;
}

async fn forgetful_disk(cx: &Context) {
    sink::all(cx, async || {
        let sink = LocalSink::with_disk(cx, ForgetfulDisk::new(), "/forgetful").await.unwrap();
        Arc::new(sink) as Arc<dyn Sink>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_real_disk() {
    real_disk(&Context::system()).await;
}

#[tokio::test]
async fn a_real_disk_simulated() {
    real_disk(&simulated()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_forgetful_disk() {
    forgetful_disk(&Context::system()).await;
}

#[tokio::test]
async fn a_forgetful_disk_simulated() {
    forgetful_disk(&simulated()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_creates_through_several_sinks_on_one_directory() {
    use bytes::Bytes;
    use snapkit_core::key::Key;
    use snapkit_core::sink::{Put, PutMode};

    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    for round in 0..100 {
        let key = Key::new(format!("race/{round}")).unwrap();
        let mut tasks = Vec::new();
        for racer in 0..4u8 {
            // As different processes do, which share nothing but the directory.
            let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
            let (cx, key) = (Context::system(), key.clone());
            tasks.push(Context::system().spawn(async move {
                let data = Bytes::from(vec![racer; 500]);
                sink.put(&cx, &key, data, PutMode::Create).await.map(|put| (racer, put))
            }));
        }
        let mut winners = Vec::new();
        for task in tasks {
            let (racer, put) = task.await.unwrap();
            if put == Put::Stored {
                winners.push(racer);
            }
        }
        let [winner] = winners[..] else { panic!("{} winners", winners.len()) };
        let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
        assert_eq!(sink.get(&cx, &key, None).await.unwrap(), vec![winner; 500]);
    }
}
