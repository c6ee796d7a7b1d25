//! `/proc/sysvipc/shm`, `sem` and `msg` (proc_sysvipc(5)), for the reader's IPC namespace.
//!
//! Columns are found by their names in the header, because kernels add some (as once `rss` and `swap`).

use super::error::{At, ParseError, Result};
use super::scan;

/// A System V shared memory segment (shmget(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shm {
    /// 0 is `IPC_PRIVATE`.
    pub key: i32,
    /// Reused; with `ctime` it identifies the segment.
    pub id: i32,
    /// Permission bits, with `SHM_DEST` (0o1000) once it is marked for removal and `SHM_LOCKED` (0o2000).
    pub perms: u32,
    /// In bytes.
    pub size: u64,
    /// Who made it.
    pub cpid: i32,
    /// Who attached or detached last.
    pub lpid: i32,
    /// How many mappings it has.
    pub nattch: u64,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Last attach, seconds since the epoch; 0 for never.
    pub atime: i64,
    /// Last detach, seconds since the epoch; 0 for never.
    pub dtime: i64,
    /// Creation or last `IPC_SET`, seconds since the epoch.
    pub ctime: i64,
    /// Bytes in memory.
    pub rss: Option<u64>,
    /// Bytes in swap.
    pub swap: Option<u64>,
}

/// A System V semaphore set (semget(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sem {
    /// 0 is `IPC_PRIVATE`.
    pub key: i32,
    /// Reused; with `ctime` it identifies the set.
    pub id: i32,
    /// Permission bits.
    pub perms: u32,
    /// How many semaphores.
    pub nsems: u64,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Last semop(2), seconds since the epoch; 0 for never.
    pub otime: i64,
    /// Creation or last `IPC_SET`, seconds since the epoch.
    pub ctime: i64,
}

/// A System V message queue (msgget(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msg {
    /// 0 is `IPC_PRIVATE`.
    pub key: i32,
    /// Reused; with `ctime` it identifies the queue.
    pub id: i32,
    /// Permission bits.
    pub perms: u32,
    /// Bytes in the queue.
    pub cbytes: u64,
    /// Messages in the queue.
    pub qnum: u64,
    /// Who sent last.
    pub lspid: i32,
    /// Who received last.
    pub lrpid: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Last msgsnd(2), seconds since the epoch; 0 for never.
    pub stime: i64,
    /// Last msgrcv(2), seconds since the epoch; 0 for never.
    pub rtime: i64,
    /// Creation or last `IPC_SET`, seconds since the epoch.
    pub ctime: i64,
}

/// Reads the whole of `/proc/sysvipc/shm`.
///
/// # Errors
/// If the header or a row lacks a column, a value is out of range, or the last line was cut.
pub fn parse_shm(input: &[u8]) -> Result<Vec<Shm>> {
    rows("sysvipc/shm", input, |row| {
        Ok(Shm {
            key: row.signed("key")?,
            id: row.signed("shmid")?,
            perms: row.perms()?,
            size: row.unsigned("size")?,
            cpid: row.signed("cpid")?,
            lpid: row.signed("lpid")?,
            nattch: row.unsigned("nattch")?,
            uid: row.unsigned("uid")?,
            gid: row.unsigned("gid")?,
            cuid: row.unsigned("cuid")?,
            cgid: row.unsigned("cgid")?,
            atime: row.signed("atime")?,
            dtime: row.signed("dtime")?,
            ctime: row.signed("ctime")?,
            rss: row.optional("rss")?,
            swap: row.optional("swap")?,
        })
    })
}

/// Reads the whole of `/proc/sysvipc/sem`.
///
/// # Errors
/// As [`parse_shm`].
pub fn parse_sem(input: &[u8]) -> Result<Vec<Sem>> {
    rows("sysvipc/sem", input, |row| {
        Ok(Sem {
            key: row.signed("key")?,
            id: row.signed("semid")?,
            perms: row.perms()?,
            nsems: row.unsigned("nsems")?,
            uid: row.unsigned("uid")?,
            gid: row.unsigned("gid")?,
            cuid: row.unsigned("cuid")?,
            cgid: row.unsigned("cgid")?,
            otime: row.signed("otime")?,
            ctime: row.signed("ctime")?,
        })
    })
}

/// Reads the whole of `/proc/sysvipc/msg`.
///
/// # Errors
/// As [`parse_shm`].
pub fn parse_msg(input: &[u8]) -> Result<Vec<Msg>> {
    rows("sysvipc/msg", input, |row| {
        Ok(Msg {
            key: row.signed("key")?,
            id: row.signed("msqid")?,
            perms: row.perms()?,
            cbytes: row.unsigned("cbytes")?,
            qnum: row.unsigned("qnum")?,
            lspid: row.signed("lspid")?,
            lrpid: row.signed("lrpid")?,
            uid: row.unsigned("uid")?,
            gid: row.unsigned("gid")?,
            cuid: row.unsigned("cuid")?,
            cgid: row.unsigned("cgid")?,
            stime: row.signed("stime")?,
            rtime: row.signed("rtime")?,
            ctime: row.signed("ctime")?,
        })
    })
}

/// More columns than any kernel has, and a bound on the work for a hostile header.
const MAX_COLUMNS: usize = 32;

/// A line split at its blanks.
struct Columns<'a> {
    words: [&'a [u8]; MAX_COLUMNS],
    count: usize,
}

impl<'a> Columns<'a> {
    fn split(at: At<'a>) -> Result<Self> {
        let mut columns = Self { words: [b""; MAX_COLUMNS], count: 0 };
        let mut rest = at.line;
        loop {
            let word = scan::word(&mut rest);
            if word.is_empty() {
                return Ok(columns);
            }
            *at.need("number of columns", columns.words.get_mut(columns.count))? = word;
            columns.count += 1;
        }
    }

    fn words(&self) -> &[&'a [u8]] {
        &self.words[..self.count]
    }
}

struct Row<'a> {
    at: At<'a>,
    header: &'a Columns<'a>,
    values: Columns<'a>,
}

impl Row<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        let column = self.header.words().iter().position(|word| *word == name.as_bytes())?;
        Some(self.values.words[column])
    }

    fn unsigned<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T> {
        self.at.need(name, self.get(name).and_then(scan::unsigned))
    }

    fn signed<T: TryFrom<i64>>(&self, name: &'static str) -> Result<T> {
        self.at.need(name, self.get(name).and_then(scan::signed))
    }

    fn perms(&self) -> Result<u32> {
        self.at.need("perms", self.get("perms").and_then(scan::octal))
    }

    fn optional(&self, name: &'static str) -> Result<Option<u64>> {
        self.get(name).map(|value| self.at.need(name, scan::unsigned(value))).transpose()
    }
}

fn rows<T>(format: &'static str, input: &[u8], read: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut lines = scan::lines(format, input)?;
    let first = lines.next().ok_or_else(|| ParseError::new(format, "header", input))?;
    let header = Columns::split(first)?;
    if !header.words().contains(&b"key".as_slice()) {
        return Err(first.error("header"));
    }
    lines
        .map(|at| {
            let row = Row { at, header: &header, values: Columns::split(at)? };
            if row.values.count != header.count {
                return Err(at.error("number of columns"));
            }
            read(&row)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHM: &[u8] = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n      4660          0   600                  5000     1     0      0     0     0     0     0          0          0 1795226056                     0                     0\n";
    const SEM: &[u8] = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n2004318071          0   640          3     0     0     0     0          0 1795226056\n         0          1   640          3     0     0     0     0          0 1795226056\n";
    const MSG: &[u8] = b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n     -4096          0   600           0          0     0     0     0     0     0     0          0          0 1795226056\n";

    #[test]
    fn reads_a_segment() {
        let [shm] = parse_shm(SHM).unwrap()[..] else { panic!() };
        assert_eq!((shm.key, shm.id, shm.perms, shm.size, shm.cpid), (0x1234, 0, 0o600, 5000, 1));
        assert_eq!((shm.nattch, shm.ctime, shm.rss, shm.swap), (0, 1_795_226_056, Some(0), Some(0)));
    }

    #[test]
    fn reads_semaphore_sets_and_queues() {
        let sems = parse_sem(SEM).unwrap();
        assert_eq!((sems[0].key, sems[1].key, sems[1].id), (0x7777_7777, 0, 1));
        assert_eq!((sems[0].nsems, sems[0].perms, sems[0].otime), (3, 0o640, 0));
        let [msg] = parse_msg(MSG).unwrap()[..] else { panic!() };
        assert_eq!((msg.key, msg.qnum, msg.ctime), (-4096, 0, 1_795_226_056));
    }

    #[test]
    fn columns_are_found_by_name() {
        let swapped = b"future ctime otime cgid cuid gid uid nsems perms semid key\n9 8 7 6 5 4 3 2 1640 1 -1\n";
        let expected =
            Sem { key: -1, id: 1, perms: 0o1640, nsems: 2, uid: 3, gid: 4, cuid: 5, cgid: 6, otime: 7, ctime: 8 };
        assert_eq!(parse_sem(swapped).unwrap(), [expected]);
    }

    #[test]
    fn a_segment_of_an_old_kernel_has_no_rss() {
        let old = b"key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime\n1 2 1600 3 4 5 6 7 8 9 10 11 12 13\n";
        let [shm] = parse_shm(old).unwrap()[..] else { panic!() };
        assert_eq!((shm.rss, shm.swap, shm.perms & 0o1000), (None, None, 0o1000));
    }

    #[test]
    fn a_header_alone_is_an_empty_list_and_no_header_is_an_error() {
        assert_eq!(parse_msg(&MSG[..=memchr::memchr(b'\n', MSG).unwrap()]).unwrap(), []);
        for (input, field) in [
            (&b""[..], "header"),
            (b"\n", "header"),
            (b"1 2 3\n", "header"),
            (b"key\n1\n", "semid"),
            (b"key semid\n1\n", "number of columns"),
            (b"key semid\n1 x\n", "semid"),
            (b"key semid perms\n1 1 9\n", "perms"),
            (b"key semid perms\n1 1 7", "end of line"),
        ] {
            assert_eq!(parse_sem(input).unwrap_err().field(), field);
        }
        assert_eq!(parse_sem("key ".repeat(33).as_bytes()).unwrap_err().field(), "end of line");
        assert_eq!(parse_sem(format!("{}\n", "key ".repeat(33)).as_bytes()).unwrap_err().field(), "number of columns");
    }
}
