//! What is different on a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use insta::assert_snapshot;

use crate::scenes::meddler;
use crate::support::TestEnv;

/// A terminal with a program on it, and what it shows.
struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

/// A terminal, and its other end for a program.
fn terminal() -> (Terminal, impl Fn() -> Stdio) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = File::options().read(true).write(true).open(name).unwrap();
    let keyboard = File::from(master);
    let mut reader = keyboard.try_clone().unwrap();
    let (sender, screen) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        // The last program that closes its end makes this an error.
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size).unwrap();
    let end = move || Stdio::from(OwnedFd::from(slave.try_clone().unwrap()));
    (Terminal { keyboard, screen, shown: String::new() }, end)
}

impl Terminal {
    /// Wait until something is shown.
    fn wait_for(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let piece = self.screen.recv_timeout(Duration::from_secs(20));
            let piece = piece.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.shown));
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    fn enter(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// All that was shown when the program has ended.
    fn end(mut self, mut child: Child) -> (String, Option<i32>) {
        let code = child.wait().unwrap().code();
        while let Ok(piece) = self.screen.recv_timeout(Duration::from_millis(300)) {
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
        (self.shown, code)
    }
}

fn start(mut command: Command, end: &impl Fn() -> Stdio) -> Child {
    command.stdin(end()).stderr(end()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_passphrase_is_asked_for_and_not_shown() {
    let env = TestEnv::new();
    let (mut terminal, end) = terminal();
    let child = start(env.command(["init", "--passphrase"]), &end);
    terminal.wait_for("new passphrase: ");
    terminal.enter("hunter2");
    terminal.wait_for("once more: ");
    terminal.enter("hunter2");
    terminal.wait_for("made repository");
    let (shown, code) = terminal.end(child);
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");

    for (typed, expected) in [("hunter2", 0), ("hunter3", 12)] {
        let (mut terminal, end) = self::terminal();
        let child = start(env.command(["list"]), &end);
        terminal.wait_for("passphrase of the repository: ");
        terminal.enter(typed);
        let (shown, code) = terminal.end(child);
        assert_eq!(code, Some(expected), "{shown}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

/// What is shown when each question is answered so.
fn typed(env: &TestEnv, args: &[&str], answers: &[(&str, &[u8])]) -> String {
    let (mut terminal, end) = terminal();
    let child = start(env.command(args), &end);
    for (question, answer) in answers {
        terminal.wait_for(question);
        terminal.keyboard.write_all(answer).unwrap();
        terminal.keyboard.write_all(b"\n").unwrap();
    }
    let (shown, code) = terminal.end(child);
    format!("{}--- exit {}\n", shown.replace('\r', ""), code.unwrap())
}

#[test]
fn passphrases_that_make_nothing() {
    let env = TestEnv::new();
    let make = ["init", "--passphrase"];
    let (first, again) = ("new passphrase: ", "once more: ");
    let mut all = typed(&env, &make, &[(first, b"hunter2"), (again, b"hunter3")]);
    all += &typed(&env, &make, &[(first, b"")]);
    all += &typed(&env, &make, &[(first, b"\xff\xfe")]);
    all += &typed(&env, &make, &[(first, &[b'x'; 1025])]);
    assert!(!env.path("repo").exists());
    assert_snapshot!(all, @"
    new passphrase: 
    once more: 
    error: the two passphrases differ
    --- exit 2
    new passphrase: 
    error: the passphrase is empty
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    new passphrase: 
    error: the passphrase is not valid UTF-8
    --- exit 2
    new passphrase: 
    error: a typed passphrase has at most 1024 bytes
    --- exit 2
    ");
}

#[test]
fn a_terminal_is_no_content() {
    let env = TestEnv::with_snapshot();
    let (terminal, end) = terminal();
    let child = start(env.command(["create", "--stdin", "dump.sql"]), &end);
    let (shown, code) = terminal.end(child);
    assert_snapshot!(format!("{}--- exit {}", shown.replace('\r', ""), code.unwrap()), @"
    error: standard input is a terminal: pipe something into it, such as `pg_dump shop | snapkit create --stdin shop.sql`
    --- exit 2
    ");
}

#[test]
fn binary_content_is_not_shown() {
    let env = TestEnv::with_snapshot();
    let place = |path: &str| format!("first:files/tree/{}", env.in_tree(path));
    let mut all = String::new();
    for path in ["data/a.txt", "data/sub/b.bin"] {
        let (terminal, end) = terminal();
        let child =
            env.command(["dump", &place(path)]).stdout(end()).stderr(end()).spawn().unwrap();
        let (shown, code) = terminal.end(child);
        all += &format!("{}--- exit {}\n", shown.replace('\r', ""), code.unwrap());
    }
    assert_snapshot!(all, @"
    hello
    --- exit 0
    error: binary content is not written to a terminal: redirect it
    --- exit 2
    ");
}

#[test]
fn progress_is_drawn_and_wiped() {
    let mut env = TestEnv::with_repository();
    env.set("TERM", "xterm");
    env.write_much("work/data/big", 128);
    let (mut terminal, end) = terminal();
    let child = start(env.command(["create", "data"]), &end);
    terminal.wait_for("stream: ");
    let (shown, code) = terminal.end(child);
    assert_eq!(code, Some(0), "{shown}");
    // The line was cleared before the report was written.
    let report = shown.rsplit("\x1b[2K").next().unwrap();
    assert!(report.contains("complete: 128.0 MiB"), "{shown}");
    assert!(!report.contains("stream: "), "{shown}");
}

/// A terminal that goes away. The first calls find out whether it is one.
#[test]
fn a_terminal_that_fails() {
    let Some(meddler) = meddler() else { return };
    let program = env!("CARGO_BIN_EXE_snapkit");
    let env = TestEnv::new();
    let mut all = String::new();
    for (call, count) in [("ioctl", "2"), ("ioctl", "4"), ("ioctl", "5"), ("read", "1")] {
        let (terminal, end) = terminal();
        let rule = [call, "/dev/pts/*", count, "error=5", "--", program, "init", "--passphrase"];
        let child = start(env.through(meddler.to_str().unwrap(), rule), &end);
        let (shown, code) = terminal.end(child);
        let shown = shown.replace('\r', "");
        all += &format!("=== {count}. {call}\n{shown}--- exit {}\n", code.unwrap());
    }
    assert_snapshot!(all, @"
    === 2. ioctl
    error: --passphrase was given, but no passphrase and no terminal to ask for one
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    === 4. ioctl
    error: cannot hide what is typed
      caused by: Input/output error (os error 5)
    --- exit 1
    === 5. ioctl
    error: cannot hide what is typed
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. read
    new passphrase: 
    error: cannot read from the terminal
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}
