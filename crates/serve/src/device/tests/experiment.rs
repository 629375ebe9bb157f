use super::memory::Memory;
use super::scope::{OPTIONS, Shown, run};
use crate::device::LoopOptions;
use std::time::Duration;

#[test]
#[ignore]
fn experiment() {
    let direct = std::env::var("X_LOOP").as_deref() != Ok("buffered");
    let memory = Memory::with(1 << 30, false, Duration::from_micros(200));
    let shown = Shown::new(memory.clone(), LoopOptions { direct_io: direct, ..OPTIONS });
    println!(
        "loop/dio={} granularity={} lbs={} wc={}",
        shown.sys("loop/dio"),
        shown.sys("queue/discard_granularity"),
        shown.sys("queue/logical_block_size"),
        shown.sys("queue/write_cache")
    );
    let fio = |name: &str, rw: &str, bs: &str, depth: &str| {
        memory.forget();
        let f = format!("--filename={}", shown.text());
        let out = run(
            "fio",
            &[
                "--name=x",
                &f,
                &format!("--rw={rw}"),
                &format!("--bs={bs}"),
                "--ioengine=libaio",
                "--direct=1",
                &format!("--iodepth={depth}"),
                "--runtime=3",
                "--time_based",
                "--size=512m",
                "--output-format=terse",
                "--terse-version=3",
            ],
        );
        let t: Vec<&str> = out.lines().last().unwrap().split(';').collect();
        let seen = memory.seen();
        println!(
            "{name}: read {} KB/s {} iops, write {} KB/s {} iops; depth {} wmax {} rmax {} flushes {}",
            t[6],
            t[7],
            t[47],
            t[48],
            memory.depth_max(),
            seen.write_bytes_max,
            seen.read_bytes_max,
            seen.flushes
        );
    };
    fio("randwrite 4k qd32", "randwrite", "4k", "32");
    fio("randread 4k qd32", "randread", "4k", "32");
    fio("write 1m qd8", "write", "1m", "8");
    fio("read 1m qd8", "read", "1m", "8");
    fio("randwrite 4k qd1", "randwrite", "4k", "1");
    let r = std::process::Command::new("blkdiscard")
        .args(["-o", "1048576", "-l", "1048576", shown.text()])
        .output()
        .unwrap();
    println!(
        "blkdiscard {:?} {} -> {:?}",
        r.status,
        String::from_utf8_lossy(&r.stderr),
        memory.seen().discards
    );
    memory.forget();
    let r = std::process::Command::new("blkdiscard")
        .args(["-z", "-o", "4194304", "-l", "1049088", shown.text()])
        .output()
        .unwrap();
    println!(
        "blkdiscard -z {:?} {} -> {:?}",
        r.status,
        String::from_utf8_lossy(&r.stderr),
        memory.seen().discards
    );
    println!(
        "cached pages of the file: {}",
        run(
            "sh",
            &["-c", &format!("fincore -nbo PAGES {} 2>&1 || true", shown.mount.file().display())]
        )
        .trim()
    );
}
