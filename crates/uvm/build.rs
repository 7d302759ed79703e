//! Builds the guest agent as a static binary and leaves it in `OUT_DIR`, where the library embeds it.
//!
//! A build within a build: the inner one has its own target directory below `OUT_DIR` (so the two never wait for each other's
//! locks), the same lock file, and none of the flags meant for the outer one.

use std::path::{Path, PathBuf};
use std::process::Command;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// Variables that cargo, or a lint run, sets for the outer build and that would bend the inner one.
fn is_of_the_outer_build(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    const OTHERS: [&str; 8] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "TARGET",
        "HOST",
        "OPT_LEVEL",
        "PROFILE",
    ];
    (name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept)))
        || OTHERS.contains(&name)
        || name.starts_with("CLIPPY")
        || name.starts_with("DEP_")
}

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = here.join("../..");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET");
    for input in [
        "crates/agent/src",
        "crates/agent/Cargo.toml",
        "crates/protocol/src",
        "crates/protocol/Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");

    let agent = build(&workspace, &out.join("agent-target"), &target);
    let embedded = out.join("lcow-agent");
    std::fs::copy(&agent, &embedded).unwrap_or_else(|error| {
        panic!(
            "copy {} to {}: {error}",
            agent.display(),
            embedded.display()
        )
    });
}

fn build(workspace: &Path, target_dir: &Path, target: &str) -> PathBuf {
    let mut command = Command::new(variable("CARGO"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_build) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "lcow-agent",
            "--bin",
            "lcow-agent",
        ])
        // With a target named, the flags below hold for the agent and not for the procedural macros on the way.
        .args(["--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        // Small, and built in little time: it is copied into every machine, and compiled before everything else here.
        .args(["--config", "profile.release.lto=false"])
        .args(["--config", "profile.release.codegen-units=16"])
        .args(["--config", "profile.release.strip=true"])
        .args(["--config", "profile.release.opt-level=2"])
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static",
        );
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("run cargo for the guest agent: {error}"));
    assert!(
        status.success(),
        "building the guest agent failed ({status})"
    );
    target_dir.join(target).join("release").join("lcow-agent")
}
