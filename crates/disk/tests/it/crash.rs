//! Power cuts at every change of the file.

use std::collections::HashMap;
use std::sync::Arc;

use lcow_blockio::testing::{Dice, Failing, Recorder, power_cuts};
use lcow_blockio::{ReadAt, WriteAt};
use lcow_disk::vhdx;

use crate::support::{MIB, blank, session};

const SECTOR: u64 = 512;

/// Something a guest does to its disk.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Sectors get a mark: first, how many, which.
    Write(u64, u64, u8),
    Zero(u64, u64),
    Trim(u64, u64),
    Sync,
    /// To so many bytes.
    Grow(u64),
    /// Another identity.
    Identify(u8),
    /// Closes the disk and opens it again.
    Reopen,
}

use Step::{Grow, Identify, Reopen, Sync, Trim, Write, Zero};

/// Sectors in a block.
const BLOCK: u64 = MIB / SECTOR;

fn steps() -> Vec<Step> {
    vec![
        Write(3, 5, 1),
        Write(BLOCK - 2, 4, 2),
        Sync,
        Write(4, 2, 3),
        Write(7 * BLOCK, 3, 4),
        Zero(0, BLOCK),
        // Its old place is not free before the table says so.
        Write(9 * BLOCK + 9, 1, 5),
        Sync,
        Write(20 * BLOCK, 1, 6),
        Grow(129 << 30),
        Write(100 * BLOCK, 2, 7),
        Identify(9),
        Trim(7 * BLOCK, BLOCK),
        Sync,
        // What was given up above is used again.
        Write(11 * BLOCK, 4, 8),
        Write(2, 1, 9),
        Sync,
        Reopen,
        Write(2, 2, 10),
        // The table moves.
        Grow(300 << 30),
        Write((300 << 30) / SECTOR - 2, 2, 11),
        Zero(11 * BLOCK + 1, 2),
        Sync,
        Trim(0, 2 * BLOCK),
        Write(1, 1, 12),
        Write(12 * BLOCK, 1, 13),
        Reopen,
    ]
}

/// What was asked for, and by which op of the file it had begun and was done.
struct Done {
    step: Step,
    from: usize,
    to: usize,
}

fn perform<D: WriteAt>(
    file: &Arc<D>,
    steps: &[Step],
    count: impl Fn() -> usize,
) -> Result<Vec<Done>, Box<dyn std::error::Error>> {
    let mut done = Vec::new();
    let mut sessions = 1..;
    let mut open = || vhdx::open_writable(file.clone(), session(sessions.next().unwrap()));
    let mut disk = open()?;
    for &step in steps {
        let from = count();
        match step {
            Write(at, n, mark) => {
                disk.write_all_at(at * SECTOR, &vec![mark; (n * SECTOR) as usize])?;
            }
            Zero(at, n) => disk.zero_range(at * SECTOR, n * SECTOR)?,
            Trim(at, n) => disk.trim(at * SECTOR, n * SECTOR)?,
            Sync => disk.sync()?,
            Grow(size) => disk.grow(size)?,
            Identify(id) => disk.set_id(vhdx::Guid([id; 16]))?,
            Reopen => {
                disk.close()?;
                disk = open()?;
            }
        }
        let to = count();
        done.push(Done { step, from, to });
    }
    Ok(done)
}

/// What a sector may hold, and how large the disk may be, after `cut` ops.
struct Allowed {
    sizes: Vec<u64>,
    sectors: HashMap<u64, Vec<u8>>,
}

fn allowed(start_size: u64, history: &[Done], cut: usize) -> Allowed {
    let mut sizes = vec![start_size];
    let mut sectors: HashMap<u64, Vec<u8>> = HashMap::new();
    // All that any step ever touches, so that a sector written too early or in the wrong place shows.
    for done in history {
        if let Write(at, n, _) | Zero(at, n) | Trim(at, n) = done.step {
            for sector in (at..at + n).filter(|s| *s < at + 6 || *s + 6 > at + n) {
                sectors.insert(sector, vec![0]);
            }
        }
    }
    for done in history
        .iter()
        .filter(|done| done.from < cut || done.to <= cut)
    {
        let safe = done.to <= cut;
        match done.step {
            Write(at, n, _) | Zero(at, n) | Trim(at, n) => {
                let mark = match done.step {
                    Write(_, _, mark) => mark,
                    _ => 0,
                };
                for sector in at..at + n {
                    if let Some(marks) = sectors.get_mut(&sector) {
                        marks.push(mark);
                    }
                }
            }
            Grow(size) if safe => sizes = vec![size],
            Grow(size) => sizes.push(size),
            _ => {}
        }
        // Growing makes safe what came before it, as does closing.
        if safe && matches!(done.step, Sync | Grow(_) | Identify(_) | Reopen) {
            for marks in sectors.values_mut() {
                *marks = vec![*marks.last().unwrap()];
            }
        }
    }
    Allowed { sizes, sectors }
}

fn verify(disk: &dyn ReadAt, allowed: &Allowed, case: &str) {
    let size = disk.size().unwrap();
    assert!(
        allowed.sizes.contains(&size),
        "{case}: {size} bytes, not {:?}",
        allowed.sizes
    );
    for (&sector, marks) in &allowed.sectors {
        let mut bytes = [0xee; SECTOR as usize];
        let n = disk.read_at(sector * SECTOR, &mut bytes).unwrap();
        if n == 0 && sector * SECTOR >= size {
            continue;
        }
        assert!(
            bytes.iter().all(|b| *b == bytes[0]) && marks.contains(&bytes[0]),
            "{case}: sector {sector} holds {:x?}, not one of {marks:?}",
            &bytes[..16],
        );
    }
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_state() {
    let size = 127 << 30;
    let start = blank(size, 1 << 20);
    let recorder = Arc::new(Recorder::new(start.snapshot()));
    let history = perform(&recorder, &steps(), || recorder.count()).unwrap();
    let ops = recorder.ops();
    let mut dice = Dice(77);
    let (mut cuts, mut logs) = (0, 0);
    power_cuts(&start, &ops, 4, 4711, |cut, file| {
        cuts += 1;
        let case = format!("cut {cuts}, after {cut} of {} changes", ops.len());
        let report = vhdx::check(&file).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(report.is_clean(), "{case}: {report:?}");
        assert!(
            !report
                .notes
                .iter()
                .any(|note| note.contains("no whole entry")),
            "{case}: {report:?}"
        );
        logs += usize::from(report.info.replayed > 0);
        let allowed = allowed(size, &history, cut);
        let image = vhdx::open(&file).unwrap();
        verify(&image, &allowed, &case);

        // What was seen stays, when the log is replayed on the disk and life goes on.
        let seen: Vec<_> = allowed
            .sectors
            .keys()
            .map(|sector| {
                let mut byte = [0];
                image.read_at(sector * SECTOR, &mut byte).unwrap();
                (*sector, byte)
            })
            .collect();
        let size = image.size().unwrap();
        let disk = vhdx::open_writable(&file, session(90)).unwrap();
        let block = 30 + dice.roll(50);
        disk.write_all_at(block * MIB, b"more").unwrap();
        for (sector, byte) in seen {
            let mut now = [0];
            disk.read_at(sector * SECTOR, &mut now).unwrap();
            assert_eq!(now, byte, "{case}: sector {sector}");
        }
        assert_eq!(disk.size().unwrap(), size);
        disk.close().unwrap();
        let report = vhdx::check(&file).unwrap();
        assert!(report.is_clean(), "{case}, and after more: {report:?}");
    })
    .unwrap();
    assert!(
        cuts > 300 && logs > 100,
        "{cuts} cuts, {logs} of them with a log"
    );
}

/// Replaying is interrupted, too, and goes on from there.
#[test]
fn a_power_cut_while_replaying_loses_nothing() {
    let start = blank(1 << 30, 1 << 20);
    let recorder = Arc::new(Recorder::new(start.snapshot()));
    let disk = vhdx::open_writable(recorder.clone(), session(1)).unwrap();
    for block in 0..5 {
        disk.write_all_at(block * 100 * MIB, &[block as u8 + 1; 700])
            .unwrap();
    }
    disk.sync().unwrap();
    drop(disk);
    let mut dirty = None;
    power_cuts(&start, &recorder.ops(), 0, 1, |_, file| {
        // The last such state: the entry is whole, and nothing of it is in place.
        let replayed = vhdx::open(&file).unwrap().info().replayed;
        if replayed > 0 && dirty.is_none() {
            dirty = Some(file);
        }
    })
    .unwrap();
    let dirty = dirty.unwrap();
    let recorder = Arc::new(Recorder::new(dirty.snapshot()));
    drop(vhdx::open_writable(recorder.clone(), session(2)).unwrap());
    assert!(recorder.count() > 3);
    power_cuts(&dirty, &recorder.ops(), 4, 2, |_, file| {
        let image = vhdx::open(&file).unwrap();
        for block in 0..5 {
            let mut bytes = [0; 700];
            image.read_exact_at(block * 100 * MIB, &mut bytes).unwrap();
            assert_eq!(bytes, [block as u8 + 1; 700]);
        }
    })
    .unwrap();
}

/// What a failed fsync left unwritten, a later one may call written: so nothing is called safe after it.
#[test]
fn nothing_is_safe_after_a_sync_that_failed() {
    let start = blank(1 << 30, 1 << 20);
    // How many changes there are before the sync.
    let recorder = Recorder::new(start.snapshot());
    let disk = vhdx::open_writable(&recorder, session(1)).unwrap();
    disk.write_all_at(0, &[7; 4096]).unwrap();
    let before = recorder.count() as u64;

    let file = Failing::once_after(start.snapshot(), before);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(0, &[7; 4096]).unwrap();
    disk.sync().unwrap_err();
    disk.sync().unwrap_err();
    disk.write_all_at(1 << 20, &[7; 4096]).unwrap_err();
    disk.close().unwrap_err();
}

#[test]
fn a_disk_that_fails_loses_nothing_that_was_synced() {
    let size = 127 << 30;
    let start = blank(size, 1 << 20);
    let mut failures = 0;
    for changes in 0.. {
        let inner = start.snapshot();
        let file = Arc::new(Failing::after(&inner, changes));
        let began = std::cell::Cell::new(0);
        let result = perform(&file, &steps(), || {
            began.set(began.get() + 1);
            began.get()
        });
        let report = vhdx::check(&inner).unwrap();
        assert!(report.is_clean(), "after {changes} changes: {report:?}");
        let Err(error) = result else { break };
        failures += 1;
        let mut chain = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            chain = format!("{chain}: {next}");
            cause = next.source();
        }
        assert!(chain.contains("as the test wanted"), "{chain}");
        // Two counts for each step: what ended did so in order, and the next one had begun.
        let ended = began.get() / 2;
        let history: Vec<_> = (0..)
            .zip(steps())
            .map(|(n, step)| Done {
                step,
                from: 2 * n,
                to: 2 * n + 2,
            })
            .collect();
        let allowed = allowed(size, &history, 2 * ended + 1);
        verify(
            &vhdx::open(&inner).unwrap(),
            &allowed,
            &format!("after {changes} changes"),
        );
    }
    assert!(failures > 50, "{failures}");
}
