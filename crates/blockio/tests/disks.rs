//! Every disk keeps the same promises: one suite, run on each.

use std::io::ErrorKind;

use lcow_blockio::{FileDisk, MemDisk, ReadAt, SubRange, WriteAt};
use proptest::prelude::*;

fn file() -> FileDisk {
    tempfile::tempfile().unwrap().into()
}

fn bytes(disk: &impl ReadAt) -> Vec<u8> {
    let mut all = vec![0xee; usize::try_from(disk.size().unwrap()).unwrap()];
    disk.read_exact_at(0, &mut all).unwrap();
    all
}

/// What comes of copying only what may be data.
fn copied(disk: &impl ReadAt) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size().unwrap()).unwrap()];
    let mut at = 0;
    while let Some(data) = disk.next_data(at).unwrap() {
        assert!(at <= data.start && data.start < data.end && data.end <= all.len() as u64);
        let place = &mut all[data.start as usize..data.end as usize];
        disk.read_exact_at(data.start, place).unwrap();
        at = data.end;
    }
    all
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Zero(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0u64..200_000;
    prop_oneof![
        (place.clone(), prop::collection::vec(any::<u8>(), 0..5000))
            .prop_map(|(at, b)| Step::Write(at, b)),
        place.clone().prop_map(Step::SetLen),
        (place, 0u64..150_000).prop_map(|(at, n)| Step::Zero(at, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_disk_is_an_array_of_bytes(steps in prop::collection::vec(step(), 1..20)) {
        let (memory, file) = (MemDisk::new(), file());
        let disks: [&dyn WriteAt; 2] = [&memory, &file];
        let mut model = Vec::new();
        for step in steps {
            for disk in disks {
                match &step {
                    Step::Write(at, b) if b.is_empty() => disk.write_all_at(*at, b).and_then(|()| disk.set_len(model.len() as u64)),
                    Step::Write(at, b) => disk.write_all_at(*at, b),
                    Step::SetLen(n) => disk.set_len(*n),
                    Step::Zero(at, n) => disk.zero_range(*at, *n),
                }.unwrap();
            }
            match step {
                Step::Write(_, b) if b.is_empty() => {}
                Step::Write(at, b) => {
                    let at = at as usize;
                    model.resize(model.len().max(at + b.len()), 0);
                    model[at..at + b.len()].copy_from_slice(&b);
                }
                Step::SetLen(n) => model.resize(n as usize, 0),
                Step::Zero(at, n) => {
                    let end = model.len().min((at + n) as usize);
                    if (at as usize) < end {
                        model[at as usize..end].fill(0);
                    }
                }
            }
            prop_assert_eq!(&bytes(&memory), &model);
            prop_assert_eq!(&bytes(&file), &model);
            let half = model.len() as u64 / 2;
            prop_assert_eq!(copied(&memory), &model[..]);
            prop_assert_eq!(copied(&file), &model[..]);
            prop_assert_eq!(copied(&SubRange::new(&file, half, half.min(50_000))), bytes(&SubRange::new(&memory, half, half.min(50_000))));
        }
        prop_assert_eq!(memory.into_bytes(), model);
    }
}

#[test]
fn reads_end_at_the_end() {
    for disk in [Box::new(MemDisk::from(vec![7; 10])) as Box<dyn WriteAt>, {
        let file = file();
        file.write_all_at(0, &[7; 10]).unwrap();
        Box::new(file)
    }] {
        let mut buf = [0; 8];
        assert_eq!(disk.read_at(6, &mut buf).unwrap(), 4);
        assert_eq!(disk.read_at(10, &mut buf).unwrap(), 0);
        assert_eq!(disk.read_at(u64::MAX >> 1, &mut buf).unwrap(), 0);
        assert_eq!(
            disk.read_exact_at(6, &mut buf).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
    }
}

#[test]
fn memory_that_was_never_written_takes_none() {
    let disk = MemDisk::new();
    disk.set_len(1 << 44).unwrap();
    disk.write_all_at(1 << 43, b"x").unwrap();
    assert_eq!(disk.allocated(), 1 << 16);
    disk.zero_range(0, 1 << 44).unwrap();
    assert_eq!(disk.allocated(), 0);
}

#[test]
fn holes_take_no_space_in_a_file() {
    use std::os::unix::fs::MetadataExt;
    let disk = file();
    disk.write_all_at(0, &vec![1; 1 << 20]).unwrap();
    disk.sync().unwrap();
    disk.zero_range(0, 1 << 20).unwrap();
    assert_eq!(disk.size().unwrap(), 1 << 20);
    assert_eq!(disk.file().metadata().unwrap().blocks(), 0);
}

#[test]
fn holes_are_known() {
    for disk in [
        Box::new(MemDisk::new()) as Box<dyn WriteAt>,
        Box::new(file()),
    ] {
        disk.set_len(10 << 20).unwrap();
        disk.write_all_at(4 << 20, &[1; 65536]).unwrap();
        let data = (4 << 20)..(4 << 20) + 65536;
        assert_eq!(disk.next_data(0).unwrap(), Some(data.clone()));
        assert_eq!(disk.next_data(data.end).unwrap(), None);
        assert_eq!(disk.next_data(1 << 40).unwrap(), None);
        let part = SubRange::new(disk, (4 << 20) - 10, 20);
        assert_eq!(part.next_data(0).unwrap(), Some(10..20));
    }
}

#[test]
fn a_range_keeps_to_itself() {
    let disk = MemDisk::from(vec![1; 100]);
    let range = SubRange::new(&disk, 10, 20);
    assert_eq!(range.size().unwrap(), 20);
    let mut buf = [0; 100];
    assert_eq!(range.read_at(5, &mut buf).unwrap(), 15);
    assert!(range.write_all_at(15, &[2; 6]).is_err());
    assert!(range.write_all_at(u64::MAX, &[2; 6]).is_err());
    range.write_all_at(15, &[2; 5]).unwrap();
    range.zero_range(0, 1000).unwrap();
    assert!(range.set_len(21).is_err());
    range.set_len(20).unwrap();
    let all = disk.into_bytes();
    assert_eq!(
        (&all[..10], &all[10..30], &all[30..]),
        (&[1; 10][..], &[0; 20][..], &[1; 70][..])
    );
}
