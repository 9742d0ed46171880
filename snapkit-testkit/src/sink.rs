//! Conformance of sinks: what [`Sink`] promises, sentence by sentence.
//!
//! Every function takes an empty sink and panics when a sentence does not hold. [`all`] calls them
//! all; a store of which something is known not to hold, such as one without create-only puts, is
//! tested by calling the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason};
use snapkit_core::key::Key;
use snapkit_core::sink::{MAX_OBJECT, Put, PutMode, Sink};

use crate::random::Seeded;
use crate::verdict::{hold, must, must_fail};

/// Run the whole suite. `make` gives an empty sink each time, independent of those before.
pub async fn all(cx: &Context, make: impl AsyncFn() -> Arc<dyn Sink>) {
    info_is_usable(cx, make().await).await;
    get_returns_what_was_put(cx, make().await).await;
    ranges(cx, make().await).await;
    overwrite_replaces(cx, make().await).await;
    create_leaves_what_is_there(cx, make().await).await;
    one_of_racing_creates_wins(cx, make().await).await;
    overwrites_are_never_mixed(cx, make().await).await;
    missing_objects(cx, make().await).await;
    listing_by_prefix(cx, make().await).await;
    listing_many(cx, make().await).await;
    delete_is_idempotent(cx, make().await).await;
    names_can_be_used_again(cx, make().await).await;
    sizes(cx, make().await).await;
    too_large_is_refused(cx, make().await).await;
    cancelled_contexts_are_not_failures(cx, make().await).await;
    a_dropped_put_is_all_or_nothing(cx, make().await).await;
}

/// `info` names a place and allows at least one request.
pub async fn info_is_usable(_: &Context, sink: Arc<dyn Sink>) {
    hold!(sink.info().concurrency >= 1, "a sink takes at least one request at once");
    hold!(!sink.info().location.is_empty(), "a sink says where it is");
}

/// What was put is read, listed with its size, and stays apart from other objects.
pub async fn get_returns_what_was_put(cx: &Context, sink: Arc<dyn Sink>) {
    let mut random = Seeded::new(1);
    let mut objects = BTreeMap::new();
    for name in ["config", "packs/00/a", "packs/00/b", "packs/01/a", "x.y_z-A/0/1/2/3/4"] {
        let len = random.index(4000);
        objects.insert(key(name), Bytes::from(random.bytes(len)));
    }
    objects.insert(key(&"k".repeat(Key::MAX_LEN)), Bytes::from_static(b"longest key"));
    for (key, data) in &objects {
        put(cx, &*sink, key, data, PutMode::Create, Put::Stored).await;
    }
    for (key, data) in &objects {
        expect(cx, &*sink, key, data).await;
    }
    let listed = list(cx, &*sink, None).await;
    hold!(
        listed == objects.iter().map(|(k, d)| (k.clone(), d.len() as u64)).collect(),
        "a listing has every object once, with its size: {listed:?}"
    );
}

/// Any range inside an object is read; one that goes beyond its end is `corrupt`.
pub async fn ranges(cx: &Context, sink: Arc<dyn Sink>) {
    let data = Bytes::from(Seeded::new(2).bytes(1000));
    let key = key("packs/aa/ranges");
    put(cx, &*sink, &key, &data, PutMode::Create, Put::Stored).await;
    for (start, end) in [(0, 1000), (0, 1), (999, 1000), (1, 999), (500, 501), (0, 0), (1000, 1000)]
    {
        let read = sink.get(cx, &key, Some(start as u64..end as u64)).await;
        let read = must("a range inside an object is read", read);
        hold!(read == data[start..end], "range {start}..{end} has the bytes that were put there");
    }
    for (start, end) in
        [(0, 1001), (999, 1001), (1000, 1001), (1001, 1001), (5000, 6000), (0, u64::MAX)]
    {
        let sentence = format!("range {start}..{end} of an object of 1000 bytes is refused");
        must_fail(&sentence, Reason::Corrupt, sink.get(cx, &key, Some(start..end)).await);
    }
}

/// `Overwrite` stores an object whether or not there was one, longer or shorter.
pub async fn overwrite_replaces(cx: &Context, sink: Arc<dyn Sink>) {
    let key = key("state/one");
    for len in [100, 5000, 3, 0, 70_000] {
        let data = Bytes::from(Seeded::new(len as u64).bytes(len));
        put(cx, &*sink, &key, &data, PutMode::Overwrite, Put::Stored).await;
        expect(cx, &*sink, &key, &data).await;
        let listed = list(cx, &*sink, None).await;
        hold!(
            listed == BTreeMap::from([(key.clone(), len as u64)]),
            "an overwritten object is listed once with its new size: {listed:?}"
        );
    }
}

/// `Create` leaves an object alone that is there, an empty one too, and says so.
pub async fn create_leaves_what_is_there(cx: &Context, sink: Arc<dyn Sink>) {
    for (name, first) in [("a/full", &b"first"[..]), ("a/empty", b"")] {
        let (key, first) = (key(name), Bytes::from_static(first));
        put(cx, &*sink, &key, &first, PutMode::Create, Put::Stored).await;
        for second in [&b"second, longer"[..], b"first", b""] {
            let second = Bytes::from_static(second);
            put(cx, &*sink, &key, &second, PutMode::Create, Put::AlreadyThere).await;
            expect(cx, &*sink, &key, &first).await;
        }
    }
}

/// Of several `Create` puts of one key at once exactly one wins, and its content stays.
pub async fn one_of_racing_creates_wins(cx: &Context, sink: Arc<dyn Sink>) {
    const ROUNDS: usize = 64;
    const RACERS: usize = 4;
    let mut tasks = Vec::new();
    for round in 0..ROUNDS {
        for racer in 0..RACERS {
            let (sink, task) = (Arc::clone(&sink), cx.clone());
            let data = racing(racer);
            tasks.push((
                round,
                racer,
                cx.spawn(
                    async move { sink.put(&task, &raced(round), data, PutMode::Create).await },
                ),
            ));
        }
    }
    let mut winners: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (round, racer, task) in tasks {
        if must("a put that races succeeds", task.await) == Put::Stored {
            winners.entry(round).or_default().push(racer);
        }
    }
    for round in 0..ROUNDS {
        let won = winners.get(&round).map_or(&[][..], Vec::as_slice);
        hold!(won.len() == 1, "exactly one of {RACERS} racing creates wins, not {}", won.len());
        expect(cx, &*sink, &raced(round), &racing(won[0])).await;
    }
    hold!(list(cx, &*sink, None).await.len() == ROUNDS, "losers of a race leave nothing behind");
}

/// Of unequal lengths, so that a mixture is seen.
fn racing(racer: usize) -> Bytes {
    Bytes::from(Seeded::new(racer as u64).bytes(1000 * (racer + 1)))
}

/// In places that are new, so that making them races too.
fn raced(round: usize) -> Key {
    key(&format!("race/{:02}/{round}", round % 16))
}

/// While an object is overwritten again and again, readers see one version or another, whole.
pub async fn overwrites_are_never_mixed(cx: &Context, sink: Arc<dyn Sink>) {
    let version = |n: u8| Bytes::from(vec![n; 20_000 + usize::from(n) * 100]);
    let place = key("state/busy");
    put(cx, &*sink, &place, &version(0), PutMode::Create, Put::Stored).await;
    let (writer, task, to) = (Arc::clone(&sink), cx.clone(), place.clone());
    let writing = cx.spawn(async move {
        for n in 1..40 {
            writer.put(&task, &to, version(n), PutMode::Overwrite).await?;
        }
        Ok(())
    });
    for _ in 0..100 {
        let read =
            must("an object is readable while it is overwritten", sink.get(cx, &place, None).await);
        hold!(
            read.first().is_some_and(|n| read == version(*n)),
            "a reader sees one whole version, not a mixture or a part of {} bytes",
            read.len()
        );
        tokio::task::yield_now().await;
    }
    must("overwriting succeeds while it is read", writing.await);
    expect(cx, &*sink, &place, &version(39)).await;
}

/// What is not there is `not-found`, whatever lies beside it; listing it is no error.
pub async fn missing_objects(cx: &Context, sink: Arc<dyn Sink>) {
    put(cx, &*sink, &key("packs/aa/one"), &Bytes::from_static(b"1"), PutMode::Create, Put::Stored)
        .await;
    for name in [
        "two",
        "packs",
        "packs/aa",
        "packs/aa/on",
        "packs/aa/one1",
        "packs/aa/one/more",
        "packs/bb/one",
    ] {
        for range in [None, Some(0..0), Some(0..1)] {
            let sentence = format!("getting {name:?}, which is not there, is refused");
            must_fail(&sentence, Reason::NotFound, sink.get(cx, &key(name), range).await);
        }
    }
    for prefix in ["two", "packs/bb", "packs/aa/one", "packs/aa/one/more"] {
        let listed = list(cx, &*sink, Some(&key(prefix))).await;
        hold!(listed.is_empty(), "nothing is listed under {prefix:?}: {listed:?}");
    }
}

/// A prefix is whole segments: `packs/a` does not list `packs/ab`.
pub async fn listing_by_prefix(cx: &Context, sink: Arc<dyn Sink>) {
    let names = [
        "a",
        "ab",
        "packs/a/1",
        "packs/a/2/3",
        "packs/ab/1",
        "packs/a.b",
        "packs-a/1",
        "z/packs/a/1",
    ];
    for name in names {
        put(
            cx,
            &*sink,
            &key(name),
            &Bytes::copy_from_slice(name.as_bytes()),
            PutMode::Create,
            Put::Stored,
        )
        .await;
        // An object put before the call is listed, at once.
        hold!(
            list(cx, &*sink, None).await.contains_key(&key(name)),
            "{name:?} is listed once it is put"
        );
    }
    for prefix in ["a", "packs", "packs/a", "packs/a/2", "packs/ab", "z", "pack", "packs/a/1"] {
        let expected: BTreeSet<_> = names
            .iter()
            .filter(|n| n.strip_prefix(prefix).is_some_and(|r| r.starts_with('/')))
            .map(|n| key(n))
            .collect();
        let listed: BTreeSet<_> = list(cx, &*sink, Some(&key(prefix))).await.into_keys().collect();
        hold!(
            listed == expected,
            "under {prefix:?} there is {expected:?}, and listed is {listed:?}"
        );
    }
}

/// More objects than one page of any store, put as many at once as the sink takes.
pub async fn listing_many(cx: &Context, sink: Arc<dyn Sink>) {
    const MANY: usize = 1100;
    let names: BTreeMap<Key, u64> =
        (0..MANY).map(|i| (key(&format!("many/{:02x}/{i}", i % 7)), (i % 3) as u64)).collect();
    let puts = names.iter().map(|(key, len)| {
        let data = Bytes::from_static(b"xxx").slice(..usize::try_from(*len).unwrap_or(0));
        let (sink, cx) = (&*sink, cx);
        async move { sink.put(cx, key, data, PutMode::Create).await }
    });
    let stored = stream::iter(puts).buffer_unordered(sink.info().concurrency).try_collect().await;
    let stored: Vec<Put> = must("many puts at once succeed", stored);
    hold!(stored.iter().all(|p| *p == Put::Stored), "puts of different keys are all stored");
    hold!(list(cx, &*sink, None).await == names, "all {MANY} objects are listed, each once");
    hold!(list(cx, &*sink, Some(&key("many"))).await == names, "and under their prefix too");
    let mut first = sink.list(cx, None);
    hold!(matches!(first.next().await, Some(Ok(_))), "a listing can be left after its first item");
}

/// Deleting what is there, what was, and what never was succeeds, and touches nothing else.
pub async fn delete_is_idempotent(cx: &Context, sink: Arc<dyn Sink>) {
    let (gone, stays) = (key("packs/aa/gone"), key("packs/aa/stays"));
    for key in [&gone, &stays] {
        put(cx, &*sink, key, &Bytes::from_static(b"x"), PutMode::Create, Put::Stored).await;
    }
    for _ in 0..2 {
        must("deleting succeeds, again too", sink.delete(cx, &gone).await);
        must_fail("a deleted object is gone", Reason::NotFound, sink.get(cx, &gone, None).await);
    }
    for never in ["never", "packs", "packs/aa", "packs/aa/stays/below", "packs/bb/never"] {
        must("deleting what never was succeeds", sink.delete(cx, &key(never)).await);
    }
    expect(cx, &*sink, &stays, &Bytes::from_static(b"x")).await;
    hold!(list(cx, &*sink, None).await.len() == 1, "a deleted object is not listed");
}

/// A name that was deleted is free, and deleting beside puts into the same place disturbs neither.
pub async fn names_can_be_used_again(cx: &Context, sink: Arc<dyn Sink>) {
    let place = key("sessions/a/1");
    for round in 0..3u8 {
        let data = Bytes::from(vec![round; 10]);
        put(cx, &*sink, &place, &data, PutMode::Create, Put::Stored).await;
        expect(cx, &*sink, &place, &data).await;
        must("deleting succeeds", sink.delete(cx, &place).await);
    }
    let mut tasks = Vec::new();
    for i in 0..4 {
        let (sink, task) = (Arc::clone(&sink), cx.clone());
        tasks.push(cx.spawn(async move {
            for round in 0..25 {
                let key = key(&format!("sessions/b/{i}"));
                let data = Bytes::from(vec![round; 10]);
                hold!(
                    sink.put(&task, &key, data.clone(), PutMode::Create).await? == Put::Stored,
                    "a deleted name is free"
                );
                hold!(
                    sink.get(&task, &key, None).await? == data,
                    "the object is there after its put"
                );
                sink.delete(&task, &key).await?;
            }
            Ok(())
        }));
    }
    for task in tasks {
        must("puts and deletes side by side succeed", task.await);
    }
    hold!(list(cx, &*sink, None).await.is_empty(), "nothing is left when all is deleted");
}

/// From nothing to 16 MiB.
pub async fn sizes(cx: &Context, sink: Arc<dyn Sink>) {
    for len in [0, 1, 4095, 4096, 4097, 1 << 20, (8 << 20) + 1, 16 << 20] {
        let data = Bytes::from(Seeded::new(len as u64).bytes(len));
        let key = key(&format!("sizes/{len}"));
        put(cx, &*sink, &key, &data, PutMode::Create, Put::Stored).await;
        expect(cx, &*sink, &key, &data).await;
        let half = sink.get(cx, &key, Some(len as u64 / 2..len as u64)).await;
        hold!(
            must("the second half is read", half) == data[len / 2..],
            "the second half of {len} bytes"
        );
        must("deleting succeeds", sink.delete(cx, &key).await);
    }
}

/// An object of more than [`MAX_OBJECT`] bytes is refused with `limit-exceeded`, and not stored.
pub async fn too_large_is_refused(cx: &Context, sink: Arc<dyn Sink>) {
    let key = key("too/large");
    let data =
        Bytes::from(vec![0; must("64 MiB fit into memory", usize::try_from(MAX_OBJECT)) + 1]);
    for mode in [PutMode::Create, PutMode::Overwrite] {
        let result = sink.put(cx, &key, data.clone(), mode).await;
        must_fail("an object above the limit is refused", Reason::LimitExceeded, result);
    }
    must_fail("a refused object is not there", Reason::NotFound, sink.get(cx, &key, None).await);
}

/// Under a cancelled context an operation is done as a whole, if it needs not wait, or not at all and
/// fails with `cancelled`; it is never taken for another failure.
pub async fn cancelled_contexts_are_not_failures(cx: &Context, sink: Arc<dyn Sink>) {
    let (place, data) = (key("cancelled/x"), Bytes::from_static(b"x"));
    let stopped = cx.child();
    stopped.cancel();
    let done = |what: &str, error: Option<Error>| match error {
        None => true,
        Some(e) => {
            hold!(e.reason() == Reason::Cancelled, "a cancelled {what} is `cancelled`: {e:?}");
            false
        }
    };
    let result = sink.put(&stopped, &place, data.clone(), PutMode::Create).await;
    if done("put", result.err()) {
        expect(cx, &*sink, &place, &data).await;
    } else {
        whole_or_missing(cx, &*sink, &place, &data).await;
        must(
            "a put after a cancelled one succeeds",
            sink.put(cx, &place, data.clone(), PutMode::Create).await,
        );
    }
    done("get", sink.get(&stopped, &place, None).await.err());
    let listed = sink.list(&stopped, None).try_collect::<Vec<_>>().await;
    hold!(listed.as_ref().map_or(1, Vec::len) == 1, "a cancelled listing fails, or is complete");
    done("listing", listed.err());
    expect(cx, &*sink, &place, &data).await;
    done("delete", sink.delete(&stopped, &place).await.err());
}

/// A put that is cancelled or dropped at any await point leaves the whole object or none, and the
/// sink in order.
pub async fn a_dropped_put_is_all_or_nothing(cx: &Context, sink: Arc<dyn Sink>) {
    for polls in 0..24u32 {
        let place = key(&format!("dropped/{polls}"));
        let data = Bytes::from(Seeded::new(u64::from(polls)).bytes(300_000));
        let child = cx.child();
        let mut putting = Box::pin(sink.put(&child, &place, data.clone(), PutMode::Create));
        for _ in 0..polls {
            let done = futures_util::poll!(&mut putting).is_ready();
            if done {
                break;
            }
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        }
        if polls % 2 == 0 {
            child.cancel();
        }
        drop(putting);
        // Work that was begun may go on for a moment: at every time it is all or nothing.
        for _ in 0..20 {
            whole_or_missing(cx, &*sink, &place, &data).await;
            tokio::task::yield_now().await;
        }
        let again = sink.put(cx, &place, data.clone(), PutMode::Create).await;
        must("a put after a dropped one succeeds", again);
        expect(cx, &*sink, &place, &data).await;
    }
    hold!(list(cx, &*sink, None).await.len() == 24, "dropped puts leave nothing that is listed");
}

async fn whole_or_missing(cx: &Context, sink: &dyn Sink, key: &Key, data: &Bytes) {
    match sink.get(cx, key, None).await {
        Ok(read) => hold!(read == *data, "a dropped put leaves the whole object or none"),
        Err(e) => hold!(e.reason() == Reason::NotFound, "after a dropped put: {e:?}"),
    }
}

fn key(name: &str) -> Key {
    must("the suite's own names are keys", Key::new(name))
}

async fn put(cx: &Context, sink: &dyn Sink, key: &Key, data: &Bytes, mode: PutMode, expected: Put) {
    let outcome = must("a put succeeds", sink.put(cx, key, data.clone(), mode).await);
    hold!(outcome == expected, "{mode:?} of {key:?} is {expected:?}, not {outcome:?}");
}

async fn expect(cx: &Context, sink: &dyn Sink, key: &Key, data: &Bytes) {
    let read = must("an object that was put is read", sink.get(cx, key, None).await);
    hold!(
        read == *data,
        "{key:?} has the {} bytes that were put, not {} others",
        data.len(),
        read.len()
    );
}

async fn list(cx: &Context, sink: &dyn Sink, prefix: Option<&Key>) -> BTreeMap<Key, u64> {
    let listed = sink.list(cx, prefix).try_collect::<Vec<_>>().await;
    let listed = must("a listing succeeds", listed);
    let count = listed.len();
    let map: BTreeMap<_, _> = listed.into_iter().map(|o| (o.key, o.size)).collect();
    hold!(map.len() == count, "each object is listed once");
    map
}
