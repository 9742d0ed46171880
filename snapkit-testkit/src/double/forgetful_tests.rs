//! The forgetful disk forgets what it may, and nothing else.

use super::*;

fn names(disk: &ForgetfulDisk) -> Vec<String> {
    disk.contents().keys().map(|p| p.display().to_string()).collect()
}

#[test]
fn what_is_flushed_stays_and_the_rest_may_go() {
    let disk = ForgetfulDisk::new();
    let (a, b) = (Path::new("a"), Path::new("b"));
    let file = disk.create_file(a, b"flushed content").unwrap();
    disk.fsync_file(&file).unwrap();
    let fork = disk.fork();
    fork.crash(0);
    assert!(names(&fork).is_empty(), "a flushed file has no durable name yet");

    disk.fsync_dir(Path::new("")).unwrap();
    disk.publish(a, b, true).unwrap();
    for (seed, expected) in [(0, "a"), (1, "b")] {
        let fork = disk.fork();
        fork.crash(seed);
        assert_eq!(names(&fork), [expected]);
        assert_eq!(fork.contents().into_values().next().unwrap(), &b"flushed content"[..]);
    }
    assert!(disk.fsync_file(&file).is_ok());
    disk.crash(0);
    assert!(disk.fsync_file(&file).is_err(), "handles do not live through a crash");
}

#[test]
fn content_that_was_not_flushed_is_torn_in_every_way() {
    let disk = ForgetfulDisk::new();
    let content = [7u8; 1000];
    disk.create_file(Path::new("a"), &content).unwrap();
    disk.fsync_dir(Path::new("")).unwrap();
    let (mut whole, mut empty, mut cut, mut zeroed) = (0, 0, 0, 0);
    for seed in 0..200 {
        let fork = disk.fork();
        fork.crash(seed);
        let left = &fork.contents()[Path::new("a")];
        match left.len() {
            0 => empty += 1,
            1000 if left[..] == content => whole += 1,
            1000 => zeroed += 1,
            _ => cut += 1,
        }
    }
    assert!([whole, empty, cut, zeroed].iter().all(|n| *n > 10), "{whole} {empty} {cut} {zeroed}");
}

#[test]
fn a_dead_disk_does_nothing_until_it_is_back() {
    let disk = ForgetfulDisk::new();
    disk.die_at(2);
    disk.create_dir(Path::new("a")).unwrap();
    assert!(disk.create_dir(Path::new("b")).is_err());
    assert!(disk.stat(Path::new("a")).is_err());
    assert_eq!(disk.operations(), 3);
    disk.crash(1);
    assert!(disk.stat(Path::new("a")).is_ok() && disk.stat(Path::new("b")).is_err());
    assert_eq!(disk.operations(), 2);
}

#[test]
fn a_full_disk_keeps_what_fits() {
    let disk = ForgetfulDisk::new();
    disk.set_capacity(10);
    let e = disk.create_file(Path::new("a"), &[1; 11]).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.contents()[Path::new("a")].len(), 10);
    disk.remove_file(Path::new("a")).unwrap();
    disk.create_file(Path::new("b"), &[1; 10]).unwrap();
}
