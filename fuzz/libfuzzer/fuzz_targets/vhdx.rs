#![no_main]

lcow_fuzz_libfuzzer::target!(&lcow_fuzz::VHDX);
