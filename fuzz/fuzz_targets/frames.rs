//! Passes libFuzzer's input to [`blobferry_fuzz::frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blobferry_fuzz::frames(data));
