import Glibc
import WorkerProtocol
import Worker

/// What to try, when, and what to leave out before: it lies at the start of the backing file, where Tests/lab/escape.py
/// wrote it. All numbers little-endian.
struct Plan {
    /// Bytes into the backing file.
    enum Offset {
        /// "ubd-escp", moment, omissions, kind, count (32 bits each), then the records of 64 bytes.
        static let head = 0
        static let records = 24
        /// A number that is not 0 starts the attempts of a live worker.
        static let trigger = 32 << 10
        /// What the attempts point to: paths, addresses, buffers.
        static let scratch = 36 << 10
        /// 64 bits each: 1 when the attempts begin; 1 when all of them came back; then their results.
        static let results = 64 << 10
    }
    static let magic: UInt64 = 0x7063_7365_2d64_6275
    static let recordBytes = 64
    static let mostRecords = (Offset.trigger - Offset.records) / recordBytes
    static let scratchBytes = 4096
    /// Upper half of a 64-bit field that stands for an address in the scratch memory; the lower half is the offset.
    static let pointerMark: UInt64 = 0x5bd0_ad00

    enum Moment: UInt32 {
        case never = 0
        /// Stage A stands, the client's files are taken.
        case setup = 1
        /// All walls stand on every thread; the broker has not been told yet.
        case sealed = 2
        /// The device is live, and the test gives the sign.
        case live = 3
        /// Nothing is tried: the worker ends when its rings are sealed and nothing is fetched,
        case endBeforeFetch = 4
        /// or when the first queue has fetched and no other,
        case endHalfFetched = 5
        /// or when all have, and the broker has not been told.
        case endFetched = 6
    }

    enum Kind: UInt32 {
        /// Records are a system call's number and its six arguments.
        case calls = 1
        /// Records are submission entries for a ring that is sealed like the queues'.
        case entries = 2
        /// Records are operations of io_uring_register(2) on that ring.
        case registrations = 3
    }

    struct Omissions: OptionSet {
        let rawValue: UInt32
        static let landlock = Omissions(rawValue: 1 << 0)
        static let setupFilter = Omissions(rawValue: 1 << 1)
        static let loopFilter = Omissions(rawValue: 1 << 2)
        /// All rings may do everything.
        static let ringSeal = Omissions(rawValue: 1 << 3)
        /// The broker is not told that the rings are sealed.
        static let ringReport = Omissions(rawValue: 1 << 4)
        /// A ring without any restriction is given to the worker's own probe.
        static let restrictions = Omissions(rawValue: 1 << 5)
    }

    var moment: Moment
    var omissions: Omissions
    var kind: Kind
    var count: Int
    /// Allocated once, never freed: behind the last wall memory can't grow.
    let records: UnsafeMutableRawPointer
    let scratch: UnsafeMutableRawPointer

    /// Reads the plan before any wall stands, through a file of its own that it closes again, so that the worker finds
    /// everything as it would be. nil: there is none, and the worker is a worker.
    static func peeked(_ launch: LaunchMessage) throws(WorkerFailure) -> Plan? {
        let files = try ClientFiles.peek(launch)
        defer { for file in files { close(file.descriptor) } }
        guard let file = files.first?.descriptor else { return nil }
        // All descriptors of this open file share their offset: the results of an early attempt are written there.
        lseek(file, off_t(Offset.results), SEEK_SET)
        return Plan(file)
    }

    private init?(_ file: Int32) {
        var head: (magic: UInt64, moment: UInt32, omissions: UInt32, kind: UInt32, count: UInt32) = (0, 0, 0, 0, 0)
        guard pread(file, &head, 24, off_t(Offset.head)) == 24, head.magic == Plan.magic,
            let moment = Moment(rawValue: head.moment), let kind = Kind(rawValue: head.kind),
            head.count <= Plan.mostRecords
        else { return nil }
        self.moment = moment
        omissions = Omissions(rawValue: head.omissions)
        self.kind = kind
        count = Int(head.count)
        records = .allocate(byteCount: max(count, 1) * Plan.recordBytes, alignment: 8)
        scratch = .allocate(byteCount: Plan.scratchBytes, alignment: 4096)
        guard pread(file, records, count * Plan.recordBytes, off_t(Offset.records)) == count * Plan.recordBytes,
            pread(file, scratch, Plan.scratchBytes, off_t(Offset.scratch)) == Plan.scratchBytes
        else { return nil }
        resolvePointers()
    }

    private func resolvePointers() {
        let words = records.assumingMemoryBound(to: UInt64.self)
        for index in 0..<(count * Plan.recordBytes / 8) where words[index] >> 32 == Plan.pointerMark {
            words[index] = UInt64(UInt(bitPattern: scratch)) + words[index] & 0xffff_ffff
        }
    }
}
