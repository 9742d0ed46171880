//! A create repeats: the same repository, sources, seed and clock give the same bytes, every one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::sync::Arc;

use lab::{Lab, Objects, memory_of, noise, simulated};
use snapkit_core::engine::CreateOptions;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::sink::Sink;
use snapkit_testkit::double::{ScriptedArtifact, ScriptedFile, ScriptedSource, SlowSink};

fn sources() -> [ScriptedSource; 2] {
    let files = (0..700u64).map(|i| {
        let len = usize::try_from(i * 31 % 3000).unwrap();
        ScriptedFile::file(&format!("d{}/f{i}", i % 7), noise(len, i))
    });
    [
        ScriptedSource::new("a").with(ScriptedArtifact::tree("tree", files)),
        ScriptedSource::new("b")
            .with(ScriptedArtifact::bytes("noise", noise(9_000_000, 1)))
            .with(ScriptedArtifact::bytes("text", b"again and again\n".repeat(200_000))),
    ]
}

/// A create by a machine that knows nothing yet, in a copy of the repository.
async fn create(base: &Lab, seed: u64) -> Objects {
    let cx = simulated(seed);
    let memory = memory_of(&cx, base.memory.contents()).await;
    let slow = SlowSink::new(Arc::clone(&memory) as _, std::time::Duration::from_millis(7));
    let lab = Lab { cx, unlock: base.unlock.clone(), ..Lab::bare(&base.cx, Arc::new(slow)) };
    let lab = Lab { sources: base.sources.clone(), ..lab };
    let repository = lab.open().await.unwrap();
    let first = repository.create(&lab.cx, &lab.stack(), &CreateOptions::default()).await.unwrap();
    // And one that has something to compare with.
    let second = repository.create(&lab.cx, &lab.stack(), &CreateOptions::default()).await.unwrap();
    assert_eq!(second.snapshot.previous, Some(first.snapshot.id));
    let objects = memory.contents();
    // It is a repository like any other.
    let lab = base.fork_on(memory as Arc<dyn Sink>);
    lab.assert_sound().await;
    assert_eq!(lab.restore(&second.snapshot).await.unwrap().verdict, RestoreVerdict::Match);
    objects
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
    // Made once: credentials are encrypted by age, with randomness of its own.
    let base = Lab::simulated(sources()).await;
    let before = base.memory.contents();
    let once = create(&base, 7).await;
    let again = create(&base, 7).await;
    assert!(once.len() > before.len() + 6, "{:?}", once.keys());
    assert_eq!(once.keys().collect::<Vec<_>>(), again.keys().collect::<Vec<_>>());
    for (key, object) in &once {
        assert!(again[key] == *object, "{key} differs");
    }
    let other = create(&base, 8).await;
    let same: Vec<_> = once.keys().filter(|k| other.contains_key(*k)).collect();
    assert_eq!(same, before.keys().collect::<Vec<_>>(), "nothing new is the same");
}
