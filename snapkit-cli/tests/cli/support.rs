//! A place to run the program in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use insta::internals::SettingsBindDropGuard;
use tempfile::TempDir;

/// The user that owns nothing.
pub(crate) const NOBODY: u32 = 65534;

/// A home, a working directory, a repository's place, and nothing else in the environment.
pub(crate) struct TestEnv {
    dir: TempDir,
    vars: BTreeMap<String, String>,
    _filters: SettingsBindDropGuard,
}

impl TestEnv {
    /// Without a repository.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut env = Self { _filters: filters(dir.path()), vars: BTreeMap::new(), dir };
        let home = env.path("home");
        env.set("HOME", home.to_str().unwrap());
        env.set("PATH", &std::env::var("PATH").unwrap());
        env.set("SNAPKIT_HOST", "box");
        let repo = env.path("repo");
        env.set("SNAPKIT_REPO", repo.to_str().unwrap());
        env
    }

    /// With an empty repository and its key in the usual place.
    pub(crate) fn with_repository() -> Self {
        let env = Self::new();
        let made = env.run(["init", "-q"]);
        assert!(made.is_success(), "{made}");
        env
    }

    /// With a repository that holds the snapshot `first` of a small tree.
    pub(crate) fn with_snapshot() -> Self {
        let env = Self::with_repository();
        env.sample();
        let made = env.run(["create", "-q", "data", "--name", "first"]);
        assert!(made.is_success(), "{made}");
        env
    }

    /// With a snapshot `first` in which one file, `data/sub/b.bin`, is most of the content.
    pub(crate) fn with_large_file() -> Self {
        let env = Self::with_repository();
        env.sample();
        // In a run of its own: what is stored in one run may share a frame.
        let made = env.run(["create", "-q", "data", "--name", "small"]);
        assert!(made.is_success(), "{made}");
        let numbers = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
        env.write("work/data/sub/b.bin", numbers.collect::<Vec<u8>>());
        let made = env.run(["create", "-q", "data", "--name", "first"]);
        assert!(made.is_success(), "{made}");
        env
    }

    /// A small tree in the working directory.
    pub(crate) fn sample(&self) {
        self.write("work/data/a.txt", "hello\n");
        self.write("work/data/sub/b.bin", [0_u8, 1, 2, 255]);
        std::os::unix::fs::symlink("a.txt", self.path("work/data/link")).unwrap();
    }

    /// A database with so many rows.
    pub(crate) fn database(&self, path: &str, rows: u32) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE t (x INTEGER)").unwrap();
        for row in 0..rows {
            db.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        }
    }

    /// A place below the test's directory.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// What stands behind `SNAPSHOT:files/tree/` for a file of the working directory.
    pub(crate) fn in_tree(&self, path: &str) -> String {
        self.path("work").join(path).to_str().unwrap().trim_start_matches('/').to_owned()
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.vars.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.vars.remove(name);
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Write so many MiB in which nothing repeats, so that it takes a while to store them.
    pub(crate) fn write_much(&self, path: &str, mebibytes: u32) {
        use std::io::Write as _;
        self.write(path, "");
        let mut file = fs::File::create(self.path(path)).unwrap();
        let mut block = vec![0_u8; 1 << 20];
        let mut state = 1_u64;
        for _ in 0..mebibytes {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            file.write_all(&block).unwrap();
        }
    }

    pub(crate) fn permit(&self, path: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// The files below a place whose names end so.
    pub(crate) fn files(&self, below: &str, suffix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path(below)];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.to_str().is_some_and(|p| p.ends_with(suffix)) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// The program, ready to run in the working directory.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        self.through(env!("CARGO_BIN_EXE_snapkit"), args)
    }

    /// A program in the same surroundings.
    pub(crate) fn through<A: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&self.vars);
        command.current_dir(self.path("work")).stdin(Stdio::null());
        command
    }

    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> CommandOutput {
        self.command(args).output().unwrap().into()
    }

    /// Run it as somebody whom permissions hold back.
    pub(crate) fn run_as_nobody(&self, args: &[&str]) -> CommandOutput {
        if !is_root() {
            return self.run(args);
        }
        let program = self.program();
        self.give(self.dir.path());
        let id = NOBODY.to_string();
        let who = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        let all = who.into_iter().chain([program.to_str().unwrap()]).chain(args.iter().copied());
        self.through("setpriv", all).output().unwrap().into()
    }

    /// A copy of the program: the build directory may be closed to others.
    pub(crate) fn program(&self) -> PathBuf {
        let program = self.path("snapkit");
        // Made by another process: what this one had open for writing could be inherited by what another
        // test starts just then, and would be too busy to run.
        let mut copy = Command::new("cp");
        assert!(copy.arg(env!("CARGO_BIN_EXE_snapkit")).arg(&program).status().unwrap().success());
        program
    }

    /// Give a place and all below it to nobody.
    fn give(&self, path: &Path) {
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap() {
                self.give(&entry.unwrap().path());
            }
        }
    }
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// What differs from run to run, as a word that says what it is.
fn filters(dir: &Path) -> SettingsBindDropGuard {
    let dir = dir.to_str().unwrap();
    let mut settings = insta::Settings::clone_current();
    for (pattern, word) in [
        (dir, "[DIR]"),
        (dir.trim_start_matches('/'), "[DIR-IN-TREE]"),
        (r"\d{8}T\d{6}Z-[0-9a-f]{16}", "[SNAPSHOT]"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
        (r"packs/[0-9a-f]{2}/", "packs/[XX]/"),
        (r"\b[0-9a-f]{24}\.run", "[HEX].run"),
        (r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16}|[0-9a-f]{8})\b", "[HEX]"),
        (r"held_by=\S+ \(process \d+\)", "held_by=[PROGRAM]"),
        (r"\b\d+\.\d (s|ms)\b", "[DURATION]"),
        (r#""seconds": [0-9.e-]+"#, r#""seconds": [DURATION]"#),
        (r"\b[0-9.]+ (B|KiB|MiB) stored", "[SIZE] stored"),
        (r"\b[0-9.]+ [KMGT]iB are free", "[SIZE] are free"),
        (r"/(snapkit-|\.tmp)[0-9A-Za-z]{6}\b", "/[RANDOM]"),
        (r#""(bytes_stored|bytes_new|cut_micros)": \d+"#, r#""$1": [N]"#),
        (r"\b\d+(\.\d)? (B|KiB|MiB) read in", "[SIZE] read in"),
        // A file that was written just before a create is read again by the next, and what entries take
        // depends on inodes and times.
        (r"(?m)^  read .* stored$", "  read [SIZES]"),
        // Only root can make the directories above a test's as they were.
        (r"(?m)^  note: directories that only lead to .*\n", ""),
        (r#""notes": \[\s*"directories that only lead to [^\]]*\]"#, r#""notes": []"#),
        // What the steps are is the source's business. That they work is tested.
        (r"(to bring back what \w+ held before:\n)(?:    .*\n)+", "$1    [STEPS]\n"),
        // A directory is read in any order.
        (r"(where the restore goes \(path=\[DIR\]/work/(data|out/files))[^,)]*", "$1"),
        // Frames are spread over packs at random.
        (r"\b[1-9]\d* packs?;", "[N] packs;"),
        // Where content is cut depends on the repository's key.
        (r"\b[1-9]\d* chunks?([,;])", "[N] chunks$1"),
        (r"\b[1-9]\d* packs? listed", "[N] packs listed"),
        (r"(?m)^new +[0-9.]+ (B|KiB)", "new      [SIZE]"),
        (r"(?m)^([-dl][rwxstST-]{9}) +\d+ +\d+ ", "$1 [UID] [GID] "),
        (r#""(uid|gid)":\d+"#, r#""$1":[ID]"#),
    ] {
        settings.add_filter(pattern, word);
    }
    settings.bind_to_scope()
}

/// Standard output, standard error and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct CommandOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    status: std::process::ExitStatus,
}

impl CommandOutput {
    pub(crate) fn is_success(&self) -> bool {
        self.status.success()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as a document.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self}"))
    }
}

impl From<Output> for CommandOutput {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { stdout: output.stdout, stderr, status: output.status }
    }
}

impl fmt::Display for CommandOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        for (name, content) in [("stdout", &text), ("stderr", &self.stderr)] {
            if !content.is_empty() {
                writeln!(f, "--- {name}")?;
                f.write_str(content)?;
                if !content.ends_with('\n') {
                    writeln!(f, "[no newline]")?;
                }
            }
        }
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "--- exit {code}"),
            (None, signal) => write!(f, "--- signal {signal:?}"),
        }
    }
}

/// What the program says of several commands.
pub(crate) fn said(env: &TestEnv, commands: &[&str]) -> String {
    let mut text = String::new();
    for command in commands {
        let words = command.split(' ').map(|word| word.trim_matches('\''));
        let output = env.run(words);
        writeln!(text, "$ snapkit {command}\n{output}").unwrap();
    }
    text
}
