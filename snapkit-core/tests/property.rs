//! Random histories of a repository against a naive oracle: a copy of what the sources held at each
//! snapshot.
#![allow(clippy::unwrap_used, reason = "a test, inside a macro that hides it")]

mod lab;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lab::{Lab, Shifted, noise, same_all};
use proptest::prelude::*;
use snapkit_core::artifact::Chunking;
use snapkit_core::context::Context;
use snapkit_core::engine::CreateOptions;
use snapkit_core::error::ErrorKind;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::key::Key;
use snapkit_core::manifest::Snapshot;
use snapkit_core::progress::Silent;
use snapkit_core::sink::{PutMode, Sink};
use snapkit_testkit::double::{
    Fault, FaultySink, ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedSource,
};

/// How many histories are tried; `SNAPKIT_CASES` says otherwise.
const CASES: u32 = 24;

type Contents = BTreeMap<String, ScriptedContent>;

#[derive(Clone, Debug)]
enum Step {
    /// Add or change a file of the tree.
    PutFile {
        name: u8,
        len: usize,
        seed: u64,
    },
    RemoveFile {
        name: u8,
    },
    /// Add or change an artifact of bytes.
    PutBytes {
        name: u8,
        len: usize,
        seed: u64,
        how: u8,
    },
    /// Change some bytes of one.
    Overwrite {
        name: u8,
        at: usize,
        seed: u64,
    },
    RemoveBytes {
        name: u8,
    },
    Create,
    /// A create whose sink fails from some operation on; that one may have been carried out.
    FailingCreate {
        at: u64,
        done: bool,
    },
    /// Restore one of the snapshots there are.
    Restore {
        which: usize,
    },
    Forget {
        which: usize,
    },
    LoseState,
    LoseCache,
    /// A pack is damaged, this is noticed, and the pack is put back as it was.
    DamageAndMend {
        which: usize,
        at: usize,
    },
    /// A pack is gone for good, and the next create stores again what the sources still have.
    LosePack {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let file_len =
        prop_oneof![6 => 0..5000usize, 2 => 5000..100_000usize, 1 => 500_000..700_000usize];
    let bytes_len =
        prop_oneof![1 => 0..10usize, 4 => 1000..200_000usize, 2 => 1_000_000..2_000_000usize];
    prop_oneof![
        8 => (0..40u8, file_len, 0..6u64).prop_map(|(name, len, seed)| Step::PutFile { name, len, seed }),
        2 => (0..40u8).prop_map(|name| Step::RemoveFile { name }),
        3 => (0..3u8, bytes_len, 0..4u64, 0..3u8)
            .prop_map(|(name, len, seed, how)| Step::PutBytes { name, len, seed, how }),
        2 => (0..3u8, any::<usize>(), any::<u64>())
            .prop_map(|(name, at, seed)| Step::Overwrite { name, at, seed }),
        1 => (0..3u8).prop_map(|name| Step::RemoveBytes { name }),
        6 => Just(Step::Create),
        2 => (1..15u64, any::<bool>()).prop_map(|(at, done)| Step::FailingCreate { at, done }),
        4 => any::<usize>().prop_map(|which| Step::Restore { which }),
        1 => any::<usize>().prop_map(|which| Step::Forget { which }),
        1 => Just(Step::LoseState),
        1 => Just(Step::LoseCache),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(which, at)| Step::DamageAndMend { which, at }),
        1 => any::<usize>().prop_map(|which| Step::LosePack { which }),
    ]
}

/// The live system, as the test knows it.
#[derive(Default)]
struct Live {
    files: BTreeMap<u8, Bytes>,
    bytes: BTreeMap<u8, (Bytes, u8)>,
}

impl Live {
    /// Let the sources hold this.
    fn publish(&self, lab: &Lab) {
        let file = |(n, content): (&u8, &Bytes)| {
            ScriptedFile::file(&format!("d{}/e{}/f{n}", n % 3, n % 2), content.clone())
        };
        lab.sources[0].set(ScriptedArtifact::tree("tree", self.files.iter().map(file)));
        lab.sources[1].set(ScriptedArtifact::bytes("always", "there"));
        for n in 0..3 {
            let name = format!("bytes{n}");
            match self.bytes.get(&n) {
                None => lab.sources[1].remove(&name),
                Some((content, how)) => {
                    let artifact = ScriptedArtifact::bytes(&name, content.clone());
                    lab.sources[1].set(match how {
                        0 => artifact,
                        1 => artifact.chunking(Chunking::Pages { page_size: 4096 }),
                        _ => artifact.chunking(Chunking::Whole).fingerprinted(),
                    });
                }
            }
        }
    }
}

struct Taken {
    snapshot: Snapshot,
    contents: [Contents; 2],
}

struct History {
    lab: Lab,
    clock: Arc<Shifted>,
    live: Live,
    taken: Vec<Taken>,
    /// Something was lost for good: older snapshots may refuse, and still may not lie.
    lossy: bool,
}

impl History {
    async fn new() -> Self {
        let clock = Arc::new(Shifted::default());
        let cx = Context::new(Arc::clone(&clock) as _, Arc::new(Silent));
        let lab = Lab::with(cx, [ScriptedSource::new("a"), ScriptedSource::new("b")]).await;
        let live = Live::default();
        live.publish(&lab);
        Self { lab, clock, live, taken: Vec::new(), lossy: false }
    }

    async fn create(&mut self) {
        self.clock.forward(10);
        let snapshot = self.lab.create().await.unwrap().snapshot;
        let newest = self.taken.iter().map(|t| &t.snapshot.id).max();
        assert!(snapshot.previous.as_ref() >= newest, "it does not name the one before it");
        let contents = [self.lab.live(0), self.lab.live(1)];
        self.taken.push(Taken { snapshot, contents });
        self.restore(self.taken.len() - 1, true).await;
    }

    async fn failing_create(&mut self, at: u64, done: bool) {
        self.clock.forward(10);
        let sink = Arc::new(FaultySink::new(Arc::clone(&self.lab.sink)));
        let repository = self.lab.open_on(Arc::clone(&sink) as _).await.unwrap();
        let fault = Fault::from(at);
        sink.fail(if done { fault.after() } else { fault });
        let options = CreateOptions::default();
        let result = repository.create(&self.lab.cx, &self.lab.stack(), &options).await;
        // Without an answer it may have been committed all the same; then it is as good as any.
        let is_new = |s: &&Snapshot| !self.taken.iter().any(|t| t.snapshot.id == s.id);
        let committed = self.lab.snapshots().await.into_iter().find(|s| is_new(&s));
        if let Ok(report) = &result {
            assert_eq!(committed.as_ref().map(|s| &s.id), Some(&report.snapshot.id));
        }
        if let Some(snapshot) = committed {
            let contents = [self.lab.live(0), self.lab.live(1)];
            self.taken.push(Taken { snapshot, contents });
            self.restore(self.taken.len() - 1, true).await;
        }
    }

    /// What comes back is what was there.
    async fn restore(&self, which: usize, whole: bool) {
        let Taken { snapshot, contents } = &self.taken[which];
        match self.lab.restore_with(snapshot, |o| o.overwrite = true).await {
            Ok(summary) => {
                assert_eq!(summary.verdict, RestoreVerdict::Match, "{:#?}", summary.sources);
                for (source, expected) in contents.iter().enumerate() {
                    assert!(same_all(&self.lab.restored(source), expected), "{}", snapshot.id);
                }
            }
            Err(e) => assert!(!whole && e.kind() == ErrorKind::Corrupt, "{e:?}"),
        }
    }

    async fn assert_ledger(&self) {
        let ledger = self.lab.open().await.unwrap().ledger(&self.lab.cx).await.unwrap();
        let mut expected: Vec<_> = self.taken.iter().map(|t| t.snapshot.id.clone()).collect();
        expected.sort_by(|a, b| b.cmp(a));
        let found: Vec<_> = ledger.snapshots.iter().map(|s| s.id.clone()).collect();
        assert_eq!(found, expected);
        assert!(ledger.gone.is_empty() && ledger.returned.is_empty() && ledger.damaged.is_empty());
    }

    fn pack(&self, which: usize) -> Option<(Key, Bytes)> {
        let mut packs: Vec<_> = self.lab.memory.contents().into_iter().collect();
        packs.retain(|(key, _)| key.as_str().starts_with("packs/"));
        (!packs.is_empty()).then(|| packs.swap_remove(which % packs.len()))
    }

    async fn put(&self, key: &Key, object: Bytes) {
        self.lab.memory.put(&self.lab.cx, key, object, PutMode::Overwrite).await.unwrap();
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::PutFile { name, len, seed } => {
                self.live.files.insert(name, noise(len, seed));
            }
            Step::RemoveFile { name } => drop(self.live.files.remove(&name)),
            Step::PutBytes { name, len, seed, how } => {
                self.live.bytes.insert(name, (noise(len, 100 + seed), how));
            }
            Step::Overwrite { name, at, seed } => {
                if let Some((content, _)) =
                    self.live.bytes.get_mut(&name).filter(|(c, _)| !c.is_empty())
                {
                    let mut changed = content.to_vec();
                    let at = at % changed.len();
                    let end = changed.len().min(at + 100);
                    changed[at..end].copy_from_slice(&noise(end - at, seed));
                    *content = changed.into();
                }
            }
            Step::RemoveBytes { name } => drop(self.live.bytes.remove(&name)),
            Step::Create => self.create().await,
            Step::FailingCreate { at, done } => self.failing_create(at, done).await,
            Step::Restore { which } if !self.taken.is_empty() => {
                self.restore(which % self.taken.len(), !self.lossy).await;
            }
            Step::Forget { which } if !self.taken.is_empty() => {
                let gone = self.taken.remove(which % self.taken.len()).snapshot;
                let repository = self.lab.open().await.unwrap();
                repository.manifest().forget(&self.lab.cx, &gone.id, "test").await.unwrap();
            }
            Step::LoseState => drop(std::fs::remove_dir_all(self.lab.path("state"))),
            Step::LoseCache => drop(std::fs::remove_dir_all(self.lab.path("cache"))),
            Step::DamageAndMend { which, at } => {
                if let Some((key, object)) = self.pack(which) {
                    let mut damaged = object.to_vec();
                    let at = at % damaged.len();
                    damaged[at] ^= 1;
                    self.put(&key, damaged.into()).await;
                    let report = self.lab.verify(true).await.unwrap();
                    assert!(report.damage.iter().any(|d| d.object == key.as_str()));
                    for which in 0..self.taken.len() {
                        self.restore(which, false).await;
                    }
                    self.put(&key, object).await;
                }
            }
            Step::LosePack { which } => {
                if let Some((key, _)) = self.pack(which) {
                    self.lab.memory.delete(&self.lab.cx, &key).await.unwrap();
                    self.lossy = true;
                    self.create().await;
                }
            }
            Step::Restore { .. } | Step::Forget { .. } => {}
        }
        self.live.publish(&self.lab);
    }

    async fn end(&mut self) {
        self.create().await;
        self.assert_ledger().await;
        if !self.lossy {
            self.lab.assert_sound().await;
        }
        // And on a machine that knows nothing.
        self.lab.forget_local();
        for which in 0..self.taken.len() {
            let newest = which + 1 == self.taken.len();
            self.restore(which, newest || !self.lossy).await;
        }
        if !self.lossy {
            self.lab.assert_sound().await;
        }
    }
}

fn cases() -> u32 {
    std::env::var("SNAPKIT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_is_what_the_sources_held(steps in proptest::collection::vec(step(), 5..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut history = History::new().await;
            for step in steps {
                history.step(step).await;
            }
            history.end().await;
        });
    }
}
