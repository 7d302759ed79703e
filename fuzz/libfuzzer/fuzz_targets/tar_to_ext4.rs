#![no_main]

lcow_fuzz_libfuzzer::target!(&lcow_fuzz::TAR_TO_EXT4);
