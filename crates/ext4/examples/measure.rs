//! Measures the writer: `measure files N DISK`, `measure dir N DISK` or `measure data MIB DISK`.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use lcow_blockio::FileDisk;
use lcow_ext4::InodeNumber;
use lcow_ext4::writer::{Content, Identity, Metadata, Summary, Writer, WriterOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, what, count, disk] = args.as_slice() else {
        return Err("usage: measure files|dir|data N DISK".into());
    };
    let count: u64 = count.parse()?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(Path::new(disk))?;
    let started = Instant::now();
    let writer = Writer::new(FileDisk::from(file), &WriterOptions::default())?;
    let summary = match what.as_str() {
        "files" => files(writer, count, 1000)?,
        "dir" => files(writer, count, count)?,
        "data" => data(writer, count)?,
        _ => return Err("what is files, dir or data".into()),
    };
    let wall = started.elapsed().as_secs_f64();
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!(
        "{what} {count}: wall {wall:.3} s, CPU {}.{:03} s, {} bytes, {} inodes",
        cpu.tv_sec,
        cpu.tv_nsec / 1_000_000,
        summary.size_bytes,
        summary.inodes
    );
    for line in std::fs::read_to_string("/proc/self/status")?.lines() {
        if line.starts_with("VmHWM") {
            println!("{line}");
        }
    }
    Ok(())
}

const IDENTITY: Identity = Identity {
    uuid: [1; 16],
    hash_seed: [2; 16],
};

fn files(
    mut writer: Writer<FileDisk>,
    count: u64,
    per_dir: u64,
) -> Result<Summary, Box<dyn std::error::Error>> {
    let metadata = Metadata {
        permissions: 0o644,
        ..Metadata::default()
    };
    let mut dir = InodeNumber::ROOT;
    for i in 0..count {
        if i % per_dir == 0 {
            let name = format!("dir-{}", i / per_dir);
            dir = writer.create(
                InodeNumber::ROOT,
                name.as_bytes(),
                Content::Directory,
                &metadata,
            )?;
        }
        let name = format!("file-{i:07}");
        writer.create(dir, name.as_bytes(), Content::Regular, &metadata)?;
    }
    Ok(writer.finish(&IDENTITY)?)
}

fn data(
    mut writer: Writer<FileDisk>,
    mebibytes: u64,
) -> Result<Summary, Box<dyn std::error::Error>> {
    let mut buffer = vec![0u8; 1 << 20];
    for (i, byte) in buffer.iter_mut().enumerate() {
        *byte = u8::try_from(i * 7 % 251)?;
    }
    let metadata = Metadata::default();
    let file = writer.create(InodeNumber::ROOT, b"big", Content::Regular, &metadata)?;
    writer.begin_data(file)?;
    // As from a tar: the data starts 512 bytes into the first buffer.
    writer.write_data(&buffer[512..])?;
    for _ in 1..mebibytes {
        writer.write_data(&buffer)?;
    }
    writer.end_data()?;
    Ok(writer.finish(&IDENTITY)?)
}
