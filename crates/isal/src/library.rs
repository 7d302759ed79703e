//! The library as it is found on the machine, and its streaming decompressor made safe.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use crate::Fault;

/// `struct inflate_state` of `isa-l/igzip_lib.h`. Callers allocate it, so its layout is part of the interface that the name
/// `libisal.so.2` stands for. On machines with pointers of 64 bits; a test holds it against the installed header.
#[repr(C)]
struct State {
    next_out: *mut u8,
    avail_out: u32,
    total_out: u32,
    next_in: *const u8,
    read_in: u64,
    avail_in: u32,
    read_in_length: i32,
    /// `lit_huff_code` and `dist_huff_code`.
    tables: [u8; 18912 + 2208],
    block_state: u32,
    dict_length: u32,
    bfinal: u32,
    crc_flag: u32,
    crc: u32,
    hist_bits: u32,
    /// What the library keeps between calls: overflows, and the window of 64 KiB.
    rest: [u8; 66184],
}

/// `crc_flag`: there is no header; the trailer is read and verified.
const ISAL_GZIP_NO_HDR_VER: u32 = 6;
/// `block_state`: all was decompressed and given out.
const ISAL_BLOCK_FINISH: u32 = 5;
const ISAL_INCORRECT_CHECKSUM: c_int = -6;

/// ISA-L, loaded.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    init: unsafe extern "C" fn(*mut State),
    inflate: unsafe extern "C" fn(*mut State) -> c_int,
}

impl Library {
    /// The library, if it is installed and its interface is the one that is known here. Loaded once; it stays.
    #[must_use]
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<Option<Library>> = OnceLock::new();
        *FOUND.get_or_init(|| Self::load().filter(|library| library.agrees()))
    }

    #[cfg(all(unix, target_pointer_width = "64"))]
    #[allow(unsafe_code)]
    fn load() -> Option<Self> {
        // SAFETY: the names are C strings. Loading runs the library's initialisers, of which it has none; it is never
        // unloaded, so the functions stay. They have the types given here in every release of this name (`igzip_lib.h`).
        unsafe {
            let handle = libc::dlopen(c"libisal.so.2".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if handle.is_null() {
                return None;
            }
            let init = libc::dlsym(handle, c"isal_inflate_init".as_ptr());
            let inflate = libc::dlsym(handle, c"isal_inflate".as_ptr());
            if init.is_null() || inflate.is_null() {
                return None;
            }
            Some(Self {
                init: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(*mut State)>(
                    init,
                ),
                inflate: std::mem::transmute::<
                    *mut libc::c_void,
                    unsafe extern "C" fn(*mut State) -> c_int,
                >(inflate),
            })
        }
    }

    #[cfg(not(all(unix, target_pointer_width = "64")))]
    fn load() -> Option<Self> {
        None
    }

    /// Whether what the library sets when it starts is what [`State`] says it is, and nothing else.
    #[allow(unsafe_code)]
    fn agrees(self) -> bool {
        const MARK: u8 = 0xa5;
        #[repr(C)]
        struct Guarded {
            state: MaybeUninit<State>,
            behind: [u8; 64],
        }
        let mut guarded = Box::<Guarded>::new_uninit();
        // SAFETY: every byte is written before any is read, and all bytes are values of the plain numbers that are read.
        let guarded = unsafe {
            std::ptr::write_bytes(guarded.as_mut_ptr(), MARK, 1);
            guarded.assume_init_mut()
        };
        let state = guarded.state.as_mut_ptr();
        // SAFETY: the pointer is to a state's memory, which is ours alone and of which every byte is set.
        let (zeros, kept) = unsafe {
            (self.init)(state);
            let set = [
                (*state).avail_out,
                (*state).total_out,
                (*state).avail_in,
                (*state).read_in_length.cast_unsigned(),
                (*state).block_state,
                (*state).dict_length,
                (*state).bfinal,
                (*state).crc_flag,
                (*state).crc,
                (*state).hist_bits,
            ];
            let rest = &(*state).rest;
            let window = rest.get(rest.len() / 2..).unwrap_or_default();
            let tables = &(*state).tables;
            let kept = tables.iter().chain(window).all(|&byte| byte == MARK);
            (set.iter().all(|&word| word == 0), kept)
        };
        zeros && kept && guarded.behind.iter().all(|&byte| byte == MARK)
    }
}

/// What a [`step`](Inflater::step) came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of the input that were taken.
    pub(crate) consumed: usize,
    /// Bytes of the output that were made.
    pub(crate) produced: usize,
    /// Whether the stream and its trailer are at their end, the trailer's checksum and length being right.
    pub(crate) finished: bool,
}

/// Decompresses a deflate stream and the trailer of a gzip member behind it.
pub(crate) struct Inflater {
    library: Library,
    state: Box<MaybeUninit<State>>,
}

impl Inflater {
    #[allow(unsafe_code)]
    pub(crate) fn new(library: Library) -> Self {
        let mut state = Box::<State>::new_uninit();
        // SAFETY: the pointer is to memory of a state's size and alignment, which is ours alone. The library sets all that it
        // reads before it wrote it: the tables are made from a block's header, and the window is as long as it says.
        unsafe {
            (library.init)(state.as_mut_ptr());
            (*state.as_mut_ptr()).crc_flag = ISAL_GZIP_NO_HDR_VER;
        }
        Self { library, state }
    }

    /// Decompresses from the start of `input` to the start of `output`, until one of them or the stream is at its end. After an
    /// error the inflater is of no use.
    #[allow(unsafe_code)]
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Fault> {
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let state = self.state.as_mut_ptr();
        // SAFETY: the library initialised the state. It gets two ranges that outlive the call, no longer than what they point
        // to: `input` is only read, and `output` is borrowed exclusively. The pointers are taken back before the borrows end.
        // The fields read afterwards are plain numbers that the library set.
        let (result, left, room_left, block_state) = unsafe {
            (*state).next_in = input.as_ptr();
            (*state).avail_in = given;
            (*state).next_out = output.as_mut_ptr();
            (*state).avail_out = room;
            let result = (self.library.inflate)(state);
            (*state).next_in = std::ptr::null();
            (*state).next_out = std::ptr::null_mut();
            (
                result,
                (*state).avail_in,
                (*state).avail_out,
                (*state).block_state,
            )
        };
        match result {
            0 => Ok(Step {
                consumed: given.saturating_sub(left) as usize,
                produced: room.saturating_sub(room_left) as usize,
                finished: block_state == ISAL_BLOCK_FINISH,
            }),
            ISAL_INCORRECT_CHECKSUM => Err(Fault::Checksum),
            _ => Err(Fault::Deflate),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// What the installed header says of the state, from a C program.
    const PROGRAM: &str = r#"
        #include <stddef.h>
        #include <stdio.h>
        #include <isa-l/igzip_lib.h>
        #define AT(field) printf("%zu ", offsetof(struct inflate_state, field))
        int main(void) {
            AT(next_out); AT(avail_out); AT(total_out); AT(next_in); AT(read_in); AT(avail_in); AT(read_in_length);
            AT(lit_huff_code); AT(block_state); AT(dict_length); AT(bfinal); AT(crc_flag); AT(crc); AT(hist_bits);
            AT(type0_block_len);
            printf("%zu %d %d %d", sizeof(struct inflate_state), ISAL_GZIP_NO_HDR_VER, ISAL_BLOCK_FINISH, ISAL_INCORRECT_CHECKSUM);
        }"#;

    #[test]
    fn the_state_is_laid_out_as_the_header_says() {
        if !std::path::Path::new("/usr/include/isa-l/igzip_lib.h").exists() {
            lcow_testkit::skip!("no libisal-dev");
        }
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
        std::fs::write(&source, PROGRAM).unwrap();
        lcow_testkit::run("cc", [source.as_os_str(), "-o".as_ref(), program.as_ref()]);
        let output = std::process::Command::new(program).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        let ours = [
            offset_of!(State, next_out),
            offset_of!(State, avail_out),
            offset_of!(State, total_out),
            offset_of!(State, next_in),
            offset_of!(State, read_in),
            offset_of!(State, avail_in),
            offset_of!(State, read_in_length),
            offset_of!(State, tables),
            offset_of!(State, block_state),
            offset_of!(State, dict_length),
            offset_of!(State, bfinal),
            offset_of!(State, crc_flag),
            offset_of!(State, crc),
            offset_of!(State, hist_bits),
            offset_of!(State, rest),
            size_of::<State>(),
        ]
        .map(|n| n.to_string())
        .join(" ");
        let constants =
            format!("{ISAL_GZIP_NO_HDR_VER} {ISAL_BLOCK_FINISH} {ISAL_INCORRECT_CHECKSUM}");
        assert_eq!(found, format!("{ours} {constants}"));
    }

    #[test]
    fn a_library_with_another_state_is_not_used() {
        extern "C" fn nothing(_: *mut State) {}
        let Some(library) = Library::find() else {
            lcow_testkit::skip!("no libisal2");
        };
        assert!(library.agrees());
        let other = Library {
            init: nothing,
            ..library
        };
        assert!(!other.agrees());
    }
}
