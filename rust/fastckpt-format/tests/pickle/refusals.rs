//! Each refusal with its whole message.

use super::*;

/// One row for each kind of error that an opcode can cause, with its whole message.
#[test]
fn each_has_its_message() {
    let cases: &[(&[&[u8]], &str)] = &[
        (
            &[b"0"],
            "byte 2: unsupported opcode 0x30 (POP); torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
        (
            &[b"i"],
            "byte 2: unsupported opcode 0x69 (INST); torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
        (
            &[b"\x82\x01"],
            "byte 2: unsupported opcode 0x82 (EXT1); torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
        (
            &[b"\xff"],
            "byte 2: unsupported opcode 0xff (no opcode of pickle); torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
        (&[b"N\x80\x02"], "byte 3: PROTO 2 is not allowed here"),
        (
            &[b"\x85"],
            "byte 2: TUPLE1 finds too few objects on the stack",
        ),
        (
            &[b"N(\x85"],
            "byte 4: TUPLE1 finds too few objects on the stack",
        ),
        (&[b""], "byte 2: STOP finds too few objects on the stack"),
        (&[b"Nt"], "byte 3: TUPLE without a MARK"),
        (
            &[b"NN"],
            "byte 4: STOP leaves 1 objects and 0 marks on the stack",
        ),
        (
            &[b"N("],
            "byte 4: STOP leaves 0 objects and 1 marks on the stack",
        ),
        (&[b"N.N"], "byte 4: 2 bytes follow the STOP opcode"),
        (
            &[b"Nr\xff\xff\xff\xff"],
            "byte 3: memo index 4294967295 is larger than its offset",
        ),
        (&[b"h\x00"], "byte 2: memo entry 0 was never stored"),
        (&[b"Nq\x01h\x00"], "byte 5: memo entry 0 was never stored"),
        (
            &[b"X\x01\x00\x00\x00\xff"],
            "byte 2: the text of BINUNICODE is not UTF-8",
        ),
        (
            &[b"X\x03\x00\x00\x00\xed\xa0."],
            "byte 2: the text of BINUNICODE is not UTF-8",
        ),
        (
            &[b"U\x03\xed\xa0\x80"],
            "byte 2: the text of SHORT_BINSTRING is not UTF-8",
        ),
        (&[b"c\xff\nx\n"], "byte 2: the text of GLOBAL is not UTF-8"),
        (
            &[b"]NNs"],
            "byte 5: SETITEM on a list; only dict, OrderedDict and Counter have items",
        ),
        (
            &[b"cos\nsystem\n)R(NNu"],
            "byte 18: SETITEMS on the result of a call; only dict, OrderedDict and Counter have items",
        ),
        (
            &[b"}(Nu"],
            "byte 5: SETITEMS with 1 objects, which are no pairs",
        ),
        (
            &[b"}]Ns"],
            "byte 5: a list cannot be a dict key or a set element",
        ),
        (
            &[b"}]\x85Ns"],
            "byte 6: a tuple with a mutable object in it cannot be a dict key or a set element",
        ),
        (
            &[b"}Na"],
            "byte 4: APPEND on a dict, only a list can be appended to",
        ),
        (
            &[b")(Ne"],
            "byte 5: APPENDS on a tuple, only a list can be appended to",
        ),
        (&[b"]}b"], "byte 4: BUILD on a list, which has no state"),
        (
            &[b"ctorch\nSize\n}b"],
            "byte 15: BUILD on a global, which has no state",
        ),
        (&[b"])R"], "byte 4: REDUCE calls a list, not a global"),
        (&[b"N)\x81"], "byte 4: NEWOBJ calls None, not a global"),
        (
            &[b"ctorch\nSize\n]R"],
            "byte 15: the arguments of REDUCE are a list, not a tuple",
        ),
    ];
    for (parts, message) in cases {
        assert_eq!(refusal(parts).to_string(), format!("data.pkl {message}"));
    }
}

/// Here the opcode to blame is the last before `STOP`.
#[test]
fn persistent_ids_and_tensors_are_refused_at_their_last_opcode() {
    let pid = |items: &[&[u8]]| [b"(", items.concat().as_slice(), b"tQ"].concat();
    let float = b"ctorch\nFloatStorage\n".as_slice();
    let (kind, key, cpu) = (unicode("storage"), unicode("0"), unicode("cpu"));
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x20";
    let cases = [
        (
            b"K\x00Q".to_vec(),
            "a persistent id whose type is not tuple",
        ),
        (b")Q".to_vec(), "a persistent id whose length is not 5"),
        (
            pid(&[b"N", float, &key, &cpu, b"K\x01"]),
            "a persistent id whose first item is not 'storage'",
        ),
        (
            pid(&[&kind, b"N", &key, &cpu, b"K\x01"]),
            "a persistent id whose second item is not a storage class",
        ),
        (
            pid(&[&kind, b"ctorch\nSize\n", &key, &cpu, b"K\x01"]),
            "a persistent id whose second item is not a storage class",
        ),
        (
            pid(&[&kind, float, b"K\x00", &cpu, b"K\x01"]),
            "a persistent id whose storage key is not a str",
        ),
        (
            pid(&[&kind, float, &key, b"N", b"K\x01"]),
            "a persistent id whose location is not a str",
        ),
        (
            pid(&[&kind, float, &key, &cpu, b"N"]),
            "a persistent id whose element count is not an int of 64 bits",
        ),
        (
            pid(&[&kind, float, &key, &cpu, &int(-1)]),
            "a persistent id whose element count is negative",
        ),
        (
            pid(&[&kind, float, &key, &cpu, huge]),
            "a persistent id whose byte count is beyond 63 bits",
        ),
        (
            tensor(4, -1, &[1], &[1]),
            "a tensor with offset -1, which is negative",
        ),
        (
            tensor(4, 0, &[1], &[]),
            "a tensor with 1 sizes and 0 strides",
        ),
        (
            tensor(4, 2, &[3], &[1]),
            "a tensor that needs 20 bytes of a storage that has 16",
        ),
        (
            tensor(4, 0, &[i32::MAX; 3], &[0; 3]),
            "a tensor of more elements than 63 bits can count",
        ),
    ];
    for (bytes, message) in cases {
        let offset = pickle(&[&bytes]).len() - 2;
        assert_eq!(
            refusal(&[&bytes]).to_string(),
            format!("data.pkl byte {offset}: {message}")
        );
    }
}

#[test]
fn every_prefix_is_truncated() {
    let whole = std::fs::read("tests/data/state_dict.pkl").unwrap();
    for end in 0..whole.len() {
        let error = decode(whole[..end].to_vec(), Limits::default()).unwrap_err();
        assert!(
            matches!(error, PickleError::Truncated { .. }),
            "{end}: {error}"
        );
    }
    let messages = [
        (
            b"".as_slice(),
            "byte 0: the pickle ends inside the stream, before STOP, 1 bytes are missing",
        ),
        (
            b"\x80\x02J\0\0",
            "byte 2: the pickle ends inside BININT, 2 bytes are missing",
        ),
        // A text of 4 GiB is not allocated before its bytes are seen.
        (
            b"\x80\x02X\xff\xff\xff\xffa",
            "byte 2: the pickle ends inside BINUNICODE, 4294967294 bytes are missing",
        ),
        (
            b"\x80\x02cos\nsys",
            "byte 2: the pickle ends inside GLOBAL, 1 bytes are missing",
        ),
    ];
    for (bytes, message) in messages {
        let error = decode(bytes.to_vec(), Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("data.pkl {message}"));
    }
}
