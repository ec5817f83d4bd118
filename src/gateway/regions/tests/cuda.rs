//! Regions on devices, with functions in the place of CUDA's that keep its rules over memory of the host.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::cuda::{HANDLE_BYTES, RawHandle, Runtime};
use super::super::{DeviceRegistration, DeviceStatus, Regions};
use super::{Object, PAGE, refusal, regions, register};
use crate::error::{Kind, Result};
use crate::telemetry::metrics::Metrics;

const DEVICES: c_int = 2;
const INVALID_VALUE: c_int = 1;
const NO_DEVICE: c_int = 100;

/// What clients have on the devices, by the address that it has in this process.
static CARDS: Mutex<BTreeMap<usize, Card>> = Mutex::new(BTreeMap::new());

thread_local! {
    static SELECTED: Cell<c_int> = const { Cell::new(-1) };
    static LAST_ERROR: Cell<c_int> = const { Cell::new(0) };
    /// What was copied to devices and has not arrived.
    static ON_THE_WAY: RefCell<Vec<(usize, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
}

struct Card {
    device: c_int,
    bytes: Vec<u8>,
    /// How often it is open in this process.
    opens: usize,
}

static RUNTIME: Runtime = Runtime {
    device_count,
    set_device,
    open_handle,
    close_handle,
    copy,
    synchronize,
    error_text,
    last_error,
    address_range,
};

fn status(done: Option<()>) -> c_int {
    let status = if done.is_some() { 0 } else { INVALID_VALUE };
    LAST_ERROR.set(status);
    status
}

/// Does something with the part of a card on the selected device; `None` if there is no such part.
fn with_part<T>(address: usize, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
    let mut cards = CARDS.lock();
    let (start, card) = cards.range_mut(..=address).next_back()?;
    let from = address - start;
    let usable = card.opens > 0 && card.device == SELECTED.get();
    usable.then_some(&mut card.bytes)?.get_mut(from..from + len).map(act)
}

unsafe extern "C" fn device_count(count: *mut c_int) -> c_int {
    // SAFETY: the caller's live place.
    unsafe { *count = DEVICES };
    0
}

unsafe extern "C" fn no_device_count(_: *mut c_int) -> c_int {
    NO_DEVICE
}

unsafe extern "C" fn set_device(device: c_int) -> c_int {
    SELECTED.set(device);
    status((0..DEVICES).contains(&device).then_some(()))
}

/// A handle is the address, and then bytes that only count up.
unsafe extern "C" fn open_handle(address: *mut *mut c_void, handle: RawHandle, flags: c_uint) -> c_int {
    let (number, rest) = handle.reserved.split_at(8);
    let number = usize::from_le_bytes(number.try_into().expect("eight bytes"));
    let is_handle = rest.iter().copied().eq(8..64) && flags == 1;
    let mut cards = CARDS.lock();
    let card = cards.get_mut(&number).filter(|card| is_handle && card.device == SELECTED.get());
    status(card.map(|card| {
        card.opens += 1;
        // SAFETY: the caller's live place.
        unsafe { *address = number as *mut c_void };
    }))
}

unsafe extern "C" fn close_handle(address: *mut c_void) -> c_int {
    let mut cards = CARDS.lock();
    let card = cards.get_mut(&(address as usize)).filter(|card| card.opens > 0 && card.device == SELECTED.get());
    status(card.map(|card| card.opens -= 1))
}

unsafe extern "C" fn copy(to: *mut c_void, from: *const c_void, len: usize, way: c_int) -> c_int {
    status(match way {
        1 => {
            // SAFETY: the caller's memory of the host.
            let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), len) }.to_vec();
            let there = with_part(to as usize, len, |_| ());
            there.map(|()| ON_THE_WAY.with_borrow_mut(|waiting| waiting.push((to as usize, data))))
        }
        2 => with_part(from as usize, len, |part| {
            // SAFETY: the caller's memory of the host.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to.cast(), len) }
        }),
        _ => None,
    })
}

unsafe extern "C" fn synchronize(stream: *mut c_void) -> c_int {
    let waiting = ON_THE_WAY.take();
    let mut arrived = waiting.iter().map(|(to, data)| with_part(*to, data.len(), |part| part.copy_from_slice(data)));
    status(arrived.all(|each| each.is_some() && stream.is_null()).then_some(()))
}

unsafe extern "C" fn error_text(status: c_int) -> *const c_char {
    if status == NO_DEVICE { c"no CUDA-capable device is detected".as_ptr() } else { c"invalid argument".as_ptr() }
}

unsafe extern "C" fn last_error() -> c_int {
    LAST_ERROR.replace(0)
}

unsafe extern "C" fn address_range(base: *mut u64, len: *mut usize, address: u64) -> c_int {
    let cards = CARDS.lock();
    status(cards.get(&(address as usize)).map(|card| {
        // SAFETY: the caller's live places.
        unsafe { (*base, *len) = (address, card.bytes.len()) };
    }))
}

/// Memory that a client has on a device.
struct Client(usize);

impl Client {
    fn new(device: c_int, bytes: usize) -> Self {
        let mut cards = CARDS.lock();
        let address = cards.keys().next_back().map_or(0x7000_0000, |last| last + 0x1_0000);
        cards.insert(address, Card { device, bytes: vec![0; bytes], opens: 0 });
        Self(address)
    }

    fn handle(&self) -> Vec<u8> {
        self.0.to_le_bytes().into_iter().chain(8..64).collect()
    }

    fn write(&self, at: usize, data: &[u8]) {
        CARDS.lock().get_mut(&self.0).expect("its own").bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        CARDS.lock()[&self.0].bytes[at..at + len].to_vec()
    }

    fn opens(&self) -> usize {
        CARDS.lock()[&self.0].opens
    }

    /// Frees the memory while the server has it open.
    fn free(&self) {
        CARDS.lock().get_mut(&self.0).expect("its own").bytes.clear();
    }

    fn register(&self, regions: &Regions, name: &str, device: i64, byte_size: u64) -> Result<()> {
        regions.register_device(DeviceRegistration { name, handle: &self.handle(), device, byte_size })
    }
}

fn with_cuda() -> Regions {
    Regions { cuda: || Ok(&RUNTIME), ..regions() }
}

fn failed(why: &str) -> (Kind, String) {
    (Kind::InvalidArgument, format!("failed to register CUDA shared memory region 'card': {why}"))
}

#[test]
fn both_kinds_share_names_and_the_limit_but_are_listed_and_forgotten_apart() {
    let (regions, object, client) = (with_cuda(), Object::new(PAGE), Client::new(1, 64));
    register(&regions, "host", &object.key, (0, 8)).expect("registered");
    client.register(&regions, "card", 1, 48).expect("registered");
    let taken = |name| (Kind::AlreadyExists, format!("shared memory region '{name}' already in manager"));
    assert_eq!(refusal(client.register(&regions, "host", 1, 48)), taken("host"));
    assert_eq!(refusal(register(&regions, "card", &object.key, (0, 8))), taken("card"));
    let card = DeviceStatus { name: "card".to_owned(), device: 1, byte_size: 48 };
    assert_eq!(regions.list_devices(""), Ok(vec![card.clone()]));
    assert_eq!(regions.list_devices("card"), Ok(vec![card]));
    assert_eq!(regions.list("").expect("listed").len(), 1);
    let unknown = |kind, name| (Kind::NotFound, format!("Unable to find {kind} shared memory region: '{name}'"));
    assert_eq!(refusal(regions.list("card")), unknown("system", "card"));
    assert_eq!(refusal(regions.list_devices("host")), unknown("cuda", "host"));
    for name in ["c", "d"] {
        client.register(&regions, name, 1, 64).expect("the same memory under other names");
    }
    assert_eq!(refusal(register(&regions, "e", &object.key, (0, 8))).0, Kind::Unavailable);
    assert_eq!(client.opens(), 3);
    regions.unregister("card");
    regions.unregister_device("host");
    regions.unregister("");
    assert_eq!((regions.list("").expect("listed").len(), regions.list_devices("").expect("listed").len()), (0, 3));
    regions.unregister_device("card");
    assert_eq!(client.opens(), 2);
    regions.unregister_device("");
    assert_eq!((regions.list_devices(""), client.opens()), (Ok(Vec::new()), 0));
}

#[test]
fn tensors_are_copied_from_and_to_the_device() {
    let metrics = Metrics::new();
    let regions = Regions { cuda: || Ok(&RUNTIME), ..Regions::new(Some(4), &metrics) };
    let (client, other) = (Client::new(0, 64), Client::new(1, 64));
    client.register(&regions, "card", 0, 64).expect("registered");
    other.register(&regions, "other", 1, 64).expect("registered, and now the other device is selected");
    client.write(8, b"input");
    let window = regions.window("card", 8, 5).expect("inside");
    let copy = window.copy().expect("read");
    client.write(8, b"later");
    assert_eq!((window.view(), copy), (None, Bytes::from_static(b"input")));
    assert_eq!(regions.window("card", 64 - 1, 0).expect("nothing is inside").copy(), Ok(Bytes::new()));
    let output = regions.window("card", 32, 8).expect("inside");
    output.place(&Bytes::from_static(b"output")).expect("written");
    assert_eq!(client.read(30, 10), b"\0\0output\0\0");
    regions.window("other", 0, 5).expect("inside").place(&window.copy().expect("read")).expect("written");
    assert_eq!(other.read(0, 6), b"later\0");
    let text = metrics.render();
    for (way, bytes) in [("viewed", 0), ("copied", 10), ("placed", 11)] {
        let line = format!("{{way=\"{way}\"}} {bytes}");
        assert!(text.contains(&line), "{line}: {text}");
    }
}

#[test]
fn a_window_stays_inside_what_was_registered() {
    let (regions, client) = (with_cuda(), Client::new(0, 64));
    client.register(&regions, "card", 0, 16).expect("registered, less than there is");
    let outside = |what| (Kind::InvalidArgument, format!("Invalid {what} for shared memory region: 'card'"));
    assert_eq!(refusal(regions.window("card", 16, 1)), outside("offset"));
    assert_eq!(refusal(regions.window("card", 8, 9)), outside("offset + byte size"));
    assert_eq!(regions.window("card", 0, 16).expect("inside").copy().expect("read").len(), 16);
}

#[test]
fn a_wrong_registration_says_why_and_leaves_nothing_open() {
    let (regions, client) = (with_cuda(), Client::new(0, 64));
    let with_handle =
        |handle: &[u8]| regions.register_device(DeviceRegistration { name: "card", handle, device: 0, byte_size: 64 });
    for bytes in [0, 63, 65] {
        let why = format!("its handle has {bytes} bytes, not 64");
        assert_eq!(refusal(with_handle(&vec![0; bytes])), failed(&why));
    }
    let unknown = failed("its handle cannot be opened (invalid argument, CUDA error 1)");
    assert_eq!(refusal(with_handle(&[0; HANDLE_BYTES])), unknown);
    assert_eq!(LAST_ERROR.get(), 0, "nobody else takes it for his");
    assert_eq!(refusal(client.register(&regions, "card", 1, 64)), unknown, "another device");
    for device in [-1, 2, i64::MAX, i64::MIN] {
        let why = format!("there is no CUDA device {device}, the last one is 1");
        assert_eq!(refusal(client.register(&regions, "card", device, 64)), failed(&why));
    }
    assert_eq!(refusal(client.register(&regions, "card", 0, 0)), failed("it has no bytes"));
    for bytes in [65, u64::MAX] {
        let why = format!("its memory has 64 bytes, not {bytes}");
        assert_eq!(refusal(client.register(&regions, "card", 0, bytes)), failed(&why));
    }
    assert_eq!(client.opens(), 0);
    client.register(&regions, "card", 0, 64).expect("the name was not taken");
}

#[test]
fn without_cuda_or_a_device_registering_says_so() {
    static EMPTY: Runtime = Runtime {
        device_count: no_device_count,
        set_device,
        open_handle,
        close_handle,
        copy,
        synchronize,
        error_text,
        last_error,
        address_range,
    };
    let client = Client::new(0, 64);
    let none = Regions { cuda: || Err("libcudart.so.13: not found".to_owned()), ..regions() };
    let expected = failed("there is no CUDA device (libcudart.so.13: not found)");
    assert_eq!(refusal(client.register(&none, "card", 0, 64)), expected);
    let empty = Regions { cuda: || Ok(&EMPTY), ..regions() };
    let expected = failed("there is no CUDA device (no CUDA-capable device is detected, CUDA error 100)");
    assert_eq!(refusal(client.register(&empty, "card", 0, 64)), expected);
    let (kind, message) = refusal(client.register(&Regions::off(), "card", 0, 64));
    assert_eq!(kind, Kind::Unimplemented, "{message}");
}

#[test]
fn what_the_device_refuses_is_an_error_of_the_request() {
    let (regions, client) = (with_cuda(), Client::new(0, 64));
    client.register(&regions, "card", 0, 64).expect("registered");
    let window = regions.window("card", 0, 8).expect("inside");
    client.free();
    let expected = |what| {
        let why = "invalid argument, CUDA error 1";
        (Kind::Internal, format!("the memory of CUDA shared memory region 'card' cannot be {what}: {why}"))
    };
    assert_eq!(refusal(window.copy()), expected("read"));
    assert_eq!(refusal(window.place(&Bytes::from_static(b"late"))), expected("written"));
}

#[test]
fn memory_of_a_device_stays_open_until_its_last_user_is_gone() {
    let (regions, client) = (with_cuda(), Client::new(1, 64));
    client.register(&regions, "card", 1, 64).expect("registered");
    let window = regions.window("card", 0, 8).expect("inside");
    regions.unregister_device("card");
    window.place(&Bytes::from_static(b"late")).expect("still open");
    assert_eq!((client.read(0, 4), client.opens()), (b"late".to_vec(), 1));
    // Which device is selected there is not known.
    std::thread::spawn(move || drop(window)).join().expect("dropped elsewhere");
    assert_eq!(client.opens(), 0);
}
