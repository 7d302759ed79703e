//! What every target of libFuzzer has in common.

/// Makes a target of `lcow_fuzz` one of libFuzzer: its mutator and its body.
#[macro_export]
macro_rules! target {
    ($target:expr) => {
        $crate::libfuzzer_sys::fuzz_mutator!(
            |data: &mut [u8], size: usize, max_size: usize, seed: u32| {
                $target.mutate(
                    data,
                    size,
                    max_size,
                    seed,
                    $crate::libfuzzer_sys::fuzzer_mutate,
                )
            }
        );
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $target.run(data));
    };
}

pub use libfuzzer_sys;
