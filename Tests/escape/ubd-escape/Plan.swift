import Glibc
import Worker
import WorkerProtocol

/// What to try, when, and what to leave out before. It lies in memory at a fixed place, so that attempts can point into
/// it: copied from the start of the backing file, or, for a target without one, written there by the test through
/// /proc/PID/mem (Tests/escape/escape.py). All numbers little-endian.
struct Plan {
    /// Where the plan is in this process, and of how many bytes.
    static let address: UInt = 0x1000_0000_0000
    static let bytes = 128 << 10
    /// Bytes into the plan, and into the backing file.
    enum Offset {
        /// "ubd-escp", moment, omissions, kind, count, early, nothing (32 bits each), then the records of 64 bytes.
        static let head = 0
        static let records = 32
        /// A number that is not 0 starts the attempts of a live worker.
        static let trigger = 32 << 10
        /// Up to here, with what the attempts point to (paths, addresses, buffers), it is the test's.
        static let results = 64 << 10
    }
    static let magic: UInt64 = 0x7063_7365_2d64_6275
    static let recordBytes = 64
    static let mostRecords = (Offset.trigger - Offset.records) / recordBytes
    /// For a test to write a plan where no file has one: so many pauses of a millisecond.
    private static let patience = 10_000

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
        /// All rings are sealed and no thread may make another; nothing is fetched, stage B is not loaded.
        case ringed = 7
        /// Like `live`, in the ring of the device's only queue, which the main thread serves in its own way: the first
        /// `early` records are its fetches.
        case alone = 8
    }

    enum Kind: UInt32 {
        /// Records are a system call's number and its six arguments.
        case calls = 1
        /// Records are submission entries for a ring that is sealed like the queues'.
        case entries = 2
        /// Records are operations of io_uring_register(2) on that ring.
        case registrations = 3
        /// Records are submission entries for a ring that is made at that very moment, and never sealed.
        case newRing = 4
        /// As `entries` and `registrations`, on a ring that has the client's first socket and is sealed like the queues' second
        /// rings.
        case socketEntries = 5
        case socketRegistrations = 6
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
    var early: Int
    /// The plan came in a file, and so do the trigger; the results go there.
    let isInFile: Bool

    static var base: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: address)! }
    static var records: UnsafeMutableRawPointer { base + Offset.records }
    /// `begun`, `done`, then one result for each attempt.
    static var report: UnsafeMutablePointer<Int64> { (base + Offset.results).assumingMemoryBound(to: Int64.self) }

    /// Reads the plan before any wall stands, through a file of its own that it closes again, so that the worker finds
    /// everything as it would be. nil: there is none, and the worker is a worker.
    static func obtained(_ launch: LaunchMessage) throws(WorkerFailure) -> Plan? {
        let fixedNoReplace: Int32 = 0x10_0000
        let memory = mmap(
            base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixedNoReplace, -1, 0)
        guard memory == base else { throw WorkerFailure(.memory, errno: errno) }
        guard [.data, .memory, .layer].contains(launch.target.inputs.first?.role) else {
            // The magic number is the last that a test writes.
            for _ in 0..<patience where base.load(as: UInt64.self) != magic { usleep(1000) }
            return Plan(inFile: false)
        }
        let files = try ClientFiles.peek(launch)
        defer { for file in files { close(file.descriptor) } }
        guard let file = files.first?.descriptor, pread(file, base, Offset.results, 0) == Offset.results
        else { return nil }
        // All descriptors of this open file share their offset: the results of an early attempt are written there.
        lseek(file, off_t(Offset.results), SEEK_SET)
        return Plan(inFile: true)
    }

    private init?(inFile: Bool) {
        let head = Plan.base.load(
            as: (magic: UInt64, moment: UInt32, omissions: UInt32, kind: UInt32, count: UInt32, early: UInt32).self)
        guard head.magic == Plan.magic, let moment = Moment(rawValue: head.moment),
            let kind = Kind(rawValue: head.kind), head.count <= Plan.mostRecords, head.early <= head.count
        else { return nil }
        self.moment = moment
        omissions = Omissions(rawValue: head.omissions)
        self.kind = kind
        count = Int(head.count)
        early = Int(head.early)
        isInFile = inFile
    }
}
