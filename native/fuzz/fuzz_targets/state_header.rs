//! Values that anybody may have stored, under names that anybody may have given: what is read is written the same, and
//! a list stays one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvnf_native::state::header::{self, Applied, RECENT, Recent, Stored, VERSION_BYTES};
use libvnf_native::state::slots::{self, Table, Tables};

fuzz_target!(|input: &[u8]| {
    let mut tables = Tables::default();
    tables.add(Table::new("v", "t", 4, true).expect("a table")).expect("a handle");
    if let Some((table, key)) = tables.find(input) {
        assert!(table == 0 && input.ends_with(key));
        let table = tables.get(table).expect("a table");
        assert_eq!(slots::slot(input), table.partitions[table.partition(key)].slot);
    }
    let Some(stored) = Stored::parse(input) else { return };
    let mut again = Vec::new();
    header::write(&mut again, stored.version, stored.deadline_ms, stored.recent, stored.payload);
    assert_eq!(again, input);
    let carried = Recent::carried(stored.recent).expect("a list");
    assert_eq!(carried.octets(), stored.recent);
    let own = input.len() as u64 | 1 << 40;
    let led = carried.led_by(own);
    assert!(led.octets().len() <= RECENT * VERSION_BYTES);
    assert_eq!(header::version(led.octets()), Some(own));
    assert_eq!(Stored { recent: led.octets(), ..stored }.has(own), Applied::Yes);
});
