//! Files to capture: the same from the same seed, written as they are made, so that gigabytes of them
//! need no memory.

mod odd;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::random::Seeded;

pub use odd::{Odd, make_removable, odd};

/// The mean length of a text file that [`tree`] writes: that of a large collection of source trees.
pub const MEAN_TEXT: u64 = 26 << 10;

/// What [`tree`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Everything follows from it.
    pub seed: u64,
    /// Text files like source code, below `src/`: compressible, log-normal lengths with a mean of
    /// [`MEAN_TEXT`], a few dozen in a directory.
    pub texts: u64,
    /// Files that no compressor shrinks, in `models/`.
    pub random: u64,
    /// The length of each of those in bytes.
    pub random_len: u64,
    /// Log files, in `logs/`: long lines that repeat themselves.
    pub logs: u64,
    /// The length of each of those in bytes, but for the rest of the last line.
    pub log_len: u64,
}

impl Spec {
    /// A little of everything: about 200 files and 8 MiB.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self { seed, texts: 200, random: 2, random_len: 1 << 20, logs: 2, log_len: 512 << 10 }
    }
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Made {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Write a tree of ordinary files into a directory that exists, times of modification included (those
/// of directories excepted). The same [`Spec`] gives the same bytes.
pub fn tree(dir: &Path, spec: &Spec) -> io::Result<Made> {
    let mut made = Made::default();
    let words = Words::new(spec.seed);
    for i in 0..spec.texts {
        let parent = dir.join(format!("src/module-{}/part-{}", i / 320, i / 40 % 8));
        if i % 40 == 0 {
            fs::create_dir_all(&parent)?;
        }
        let suffix = ["rs", "c", "h", "py", "toml", "md"][Seeded::new(i).index(6)];
        let path = parent.join(format!("file-{i}.{suffix}"));
        let mut random = Seeded::new(spec.seed ^ i.wrapping_mul(0x2545_f491_4f6c_dd1d));
        made.add(write(&path, i, |out| words.text(&mut random, out))?);
    }
    for i in 0..spec.random {
        fs::create_dir_all(dir.join("models"))?;
        let path = dir.join(format!("models/shard-{i:04}.bin"));
        let mut random = Seeded::new(spec.seed.wrapping_add(0x6d6f_6465_6c00 + i));
        made.add(write(&path, i, |out| noise(&mut random, spec.random_len, out))?);
    }
    for i in 0..spec.logs {
        fs::create_dir_all(dir.join("logs"))?;
        let path = dir.join(format!("logs/app-{i}.log"));
        let mut random = Seeded::new(spec.seed.wrapping_add(0x6c6f_6700 + i));
        made.add(write(&path, i, |out| words.log(&mut random, spec.log_len, out))?);
    }
    Ok(made)
}

fn write(
    path: &Path,
    number: u64,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(64 << 10, File::create_new(path)?);
    content(&mut out)?;
    let len = out.into_inner().map_err(io::IntoInnerError::into_error)?.metadata()?.len();
    // 2026-01-15, and a bit more for each file.
    let seconds = 1_768_487_400 + i64::try_from(number).unwrap_or(0);
    set_mtime(
        path,
        seconds,
        i64::try_from(number % 1_000_000).unwrap_or(0) * 1_009 % 1_000_000_000,
    )?;
    Ok(len)
}

/// Set when a file was last modified; of a symbolic link, when it was.
fn set_mtime(path: &Path, seconds: i64, nanos: i64) -> io::Result<()> {
    #[allow(clippy::useless_conversion, reason = "the type of nanoseconds differs between systems")]
    let at = Timespec { tv_sec: seconds, tv_nsec: nanos.try_into().unwrap_or(0) };
    let times = Timestamps { last_access: at, last_modification: at };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn noise(random: &mut Seeded, len: u64, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let take = usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
        random.fill(&mut buffer[..take]);
        out.write_all(&buffer[..take])?;
        left -= take as u64;
    }
    Ok(())
}

/// What texts are made of: made-up identifiers, few of them frequent, as in real ones.
struct Words(Vec<String>);

const LICENCE: &str = "// Permission is hereby granted, free of charge, to any person obtaining a copy\n\
    // of this software and associated documentation files, to deal in it without\n\
    // restriction, including without limitation the rights to use, copy, modify,\n\
    // merge, publish, distribute, sublicense, and to permit persons to do so.\n\n";

impl Words {
    fn new(seed: u64) -> Self {
        const PARTS: [&str; 24] = [
            "get", "set", "index", "node", "tree", "buf", "len", "read", "write", "ctx", "state",
            "map", "hash", "page", "block", "user", "request", "parse", "next", "offset", "key",
            "value", "lock", "queue",
        ];
        let mut random = Seeded::new(seed);
        let word = |random: &mut Seeded| {
            let parts = 1 + random.index(3);
            let mut word: Vec<_> = (0..parts).map(|_| PARTS[random.index(PARTS.len())]).collect();
            let number = random.below(1000).to_string();
            if random.chance(0.2) {
                word.push(&number);
            }
            word.join("_")
        };
        Self((0..8192).map(|_| word(&mut random)).collect())
    }

    fn pick(&self, random: &mut Seeded) -> &str {
        // A bound that is itself drawn, twice, prefers the first words.
        let outer = random.index(self.0.len()) + 1;
        let bound = random.index(outer) + 1;
        &self.0[random.index(bound)]
    }

    fn text(&self, random: &mut Seeded, out: &mut impl Write) -> io::Result<()> {
        // Of a log-normal distribution: its mean is exp(mu + sigma² / 2).
        const SIGMA: f64 = 1.2;
        let mu = (MEAN_TEXT as f64).ln() - SIGMA * SIGMA / 2.0;
        let len = (mu + SIGMA * random.normal()).exp().clamp(32.0, 4e6);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to four millions")]
        let len = len as usize;
        let mut text = String::with_capacity(4096);
        if random.chance(0.5) {
            text.push_str(LICENCE);
        }
        let mut written = 0;
        while written + text.len() < len {
            self.line(random, &mut text);
            if text.len() > 2048 {
                let fits = text.len().min(len - written);
                out.write_all(&text.as_bytes()[..fits])?;
                written += fits;
                text.clear();
            }
        }
        out.write_all(&text.as_bytes()[..text.len().min(len - written)])
    }

    fn line(&self, random: &mut Seeded, text: &mut String) {
        for _ in 0..1 + random.index(4) {
            text.push_str("    ");
        }
        let (a, b, c) = (self.pick(random), self.pick(random), self.pick(random));
        let line = match random.below(8) {
            0 => format!("fn {a}({b}: &{c}) -> Result<u{}> {{\n", 8 << random.below(4)),
            1 => format!("if {a}.{b}() > {} {{\n", random.below(100)),
            2 => format!("let {a} = {b}.{c}()?;\n"),
            3 => format!("{a}[{b}] = {c} + {};\n", random.below(1 << 16)),
            4 => "}\n".to_owned(),
            5 => format!("// The {a} of a {b} is read before its {c} is known.\n"),
            6 => format!("return Err(\"{a} {b} not {c}\".into());\n"),
            _ => "\n".to_owned(),
        };
        text.push_str(&line);
    }

    fn log(&self, random: &mut Seeded, len: u64, out: &mut impl Write) -> io::Result<()> {
        let (mut written, mut millis) = (0, 1_768_487_400_000u64);
        while written < len {
            millis += random.below(300);
            let level = ["INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR"][random.index(6)];
            let line = format!(
                "{}.{:03} {level:<5} [worker-{}] {}: {} took {} ms, request={:016x}\n",
                millis / 1000,
                millis % 1000,
                random.below(8),
                self.pick(random),
                self.pick(random),
                random.below(500),
                random.next_u64(),
            );
            out.write_all(line.as_bytes())?;
            written += line.len() as u64;
        }
        Ok(())
    }
}
