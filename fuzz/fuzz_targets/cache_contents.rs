//! Passes libFuzzer's input to [`blobferry_fuzz::cache_contents`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blobferry_fuzz::cache_contents(data));
