import CLiburing
import CShims
import Glibc
import KernelABI
import Synchronization
import SystemCalls
import WorkerProtocol

@testable import Ring
@testable import Worker

/// A queue whose kernel is the test: commands are NOPs, which complete at once, and the descriptors are ours. One tag:
/// what is committed ends one request, and the descriptor that then lies there is the next one.
struct TestQueue<T: Target>: ~Copyable {
    var loop: QueueLoop<T>
    /// What the target has submitted so far, its own submissions only.
    var submitted: [Submission] = []
    /// In zero-copy mode: the request's pages, which the driver would have registered.
    private let pages: Mapping
    private let zeroes: FileDescriptor
    /// What does ranges of a file: between two turns, in this thread.
    private let ranges: FileRangeWork?

    /// `files` become 1 and 2 of the ring's file table. `maxIOBytes` in bytes.
    init(
        _ target: T, files: [Int32] = [], maxIOBytes: UInt32 = 65536, zeroCopy: Bool = false,
        ranges: FileRangeWork? = nil
    ) throws(SystemError) {
        var ring = try Ring(entries: 32, completions: 64, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let zeroes = try FileDescriptor.open("/dev/zero", O_RDONLY)
        let pages = try Mapping.anonymous(bytes: Int(maxIOBytes))
        let first = files.first ?? zeroes.raw
        let empty = [Int32](repeating: -1, count: 2 - files.count)
        try ring.register(files: [first] + files + empty + [zeroes.raw])
        if zeroCopy {
            // One buffer, as the request's one tag.
            var buffer = iovec(iov_base: pages.base, iov_len: pages.count)
            let operation = UInt32(IORING_REGISTER_BUFFERS)
            let status = io_uring_register(UInt32(bitPattern: ring.descriptor), operation, &buffer, 1)
            guard status == 0 else { throw SystemError("register a buffer", -status) }
            // What nobody fills must not look filled.
            memset(pages.base, 0xee, pages.count)
        }
        let nop = SubmissionEntry.head(operation: IOUring.Operation.nop, flags: 0, file: -1)
        var queue = try Queue<T>(
            number: 0, depth: 1, maxIOBytes: maxIOBytes, ring: ring,
            buffers: zeroCopy ? .registered(base: UInt64(UInt(bitPattern: pages.base))) : .own, commandHead: nop,
            board: ranges == nil ? nil : try RangeBoard(queues: 1, depth: 1))
        var target = target
        try target.prepare(on: &queue)
        var loop = QueueLoop(queue: queue, target: target)
        try loop.queue.fetchAll()
        self.loop = loop
        self.pages = pages
        self.zeroes = zeroes
        self.ranges = ranges
    }

    /// The memory of the request's data.
    var buffer: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: loop.queue.bufferPointer(of: 0), count: pages.count)
    }

    /// Lets one request through and returns the result that was committed. `sector` and `sectors` of 512 bytes.
    mutating func perform(
        _ operation: UInt8, sector: UInt64 = 0, sectors: UInt32 = 0, flags: UInt32 = 0
    ) throws(SystemError) -> Int32 {
        loop.queue.ownDescriptors[0] = UblkIODescriptor(
            operationAndFlags: UInt32(operation) | flags, sectors: sectors, startSector: sector)
        let before = loop.queue.counters.committed
        for _ in 0..<1000 {
            let status = loop.turn()
            if status < 0 { throw SystemError("turn", Int32(-status)) }
            for entry in loop.queue.ring.pendingEntries() where entry.operation != IOUring.Operation.nop {
                submitted.append(entry)
            }
            if let board = loop.queue.board, let ranges { _ = board.serveOnce(ranges.perform) }
            if loop.queue.counters.committed == before + 1 {
                let pending = loop.queue.ring.pendingEntries()
                guard let commit = pending.last(where: { $0.operation == IOUring.Operation.nop }) else { break }
                return Int32(truncatingIfNeeded: commit.payload >> 32)
            }
        }
        throw SystemError("the request was never committed", ETIMEDOUT)
    }

    mutating func read(sector: UInt64, sectors: UInt32) throws(SystemError) -> (result: Int32, data: [UInt8]) {
        let result = try perform(UblkIOOperation.read, sector: sector, sectors: sectors)
        return (result, Array(buffer[..<(Int(sectors) * 512)]))
    }

    mutating func write(sector: UInt64, _ data: [UInt8], flags: UInt32 = 0) throws(SystemError) -> Int32 {
        buffer.copyBytes(from: data)
        return try perform(UblkIOOperation.write, sector: sector, sectors: UInt32(data.count / 512), flags: flags)
    }
}

/// A submission entry as the kernel would read it.
struct Submission: Equatable {
    var operation: UInt8
    var flags: UInt8
    var file: Int32
    var offset: UInt64
    var address: UInt64
    var length: UInt32
    var operationFlags: UInt32
    var bufferIndex: UInt16
    var payload: UInt64
    var userData: UInt64 = 0
}

extension Ring {
    /// The addresses of the buffers that commands name among what was pushed and not submitted yet.
    func pendingAddresses() -> [UInt64] {
        (0..<untaken).map { index in
            let slot = submissionEntries + Int((taken &+ index) % (capacity + 1)) * MemoryLayout<SubmissionEntry>.stride
            return slot.load(fromByteOffset: 56, as: UInt64.self)
        }
    }

    /// What was pushed and not submitted yet.
    func pendingEntries() -> [Submission] {
        (0..<untaken).map { index in
            let slot = submissionEntries + Int((taken &+ index) % (capacity + 1)) * MemoryLayout<SubmissionEntry>.stride
            return Submission(
                operation: slot.load(as: UInt8.self), flags: slot.load(fromByteOffset: 1, as: UInt8.self),
                file: slot.load(fromByteOffset: 4, as: Int32.self),
                offset: slot.load(fromByteOffset: 8, as: UInt64.self),
                address: slot.load(fromByteOffset: 16, as: UInt64.self),
                length: slot.load(fromByteOffset: 24, as: UInt32.self),
                operationFlags: slot.load(fromByteOffset: 28, as: UInt32.self),
                bufferIndex: slot.load(fromByteOffset: 40, as: UInt16.self),
                payload: slot.load(fromByteOffset: 48, as: UInt64.self),
                userData: slot.load(fromByteOffset: 32, as: UInt64.self))
        }
    }
}

/// A file of a test, removed with it.
struct TestFile: ~Copyable {
    let path: String
    let file: FileDescriptor

    /// On the file system of /tmp, `bytes` long and full of a pattern.
    init(bytes: Int) throws {
        var template = Array("/tmp/ubd-worker-test-XXXXXX".utf8CString)
        let file = FileDescriptor(owning: try call("mkostemp") { mkostemp(&template, O_CLOEXEC) })
        try file.writeAll(TestFile.pattern(bytes))
        self.file = file
        path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    deinit { unlink(path) }

    /// No 512-byte block of it is like another.
    static func pattern(_ bytes: Int, seed: UInt8 = 0) -> [UInt8] {
        (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ ($0 >> 9) &* 13) ^ seed }
    }

    func content() throws -> [UInt8] { try readFile(path) }

    /// Bytes that the file system has allocated.
    func allocated() throws -> Int { Int(try file.status().st_blocks) * 512 }
}

extension Ring {
    /// Forgets what was pushed and not submitted.
    mutating func discardPending() {
        let index = taken % capacity
        next = submissionEntries + Int(index) * MemoryLayout<SubmissionEntry>.stride
        bias = taken &- Ring.units(next)
        stop = submissionEnd
    }

    /// Plays a kernel that takes everything at once.
    mutating func takePending() -> [Submission] {
        defer { taken = tail }
        return pendingEntries()
    }
}

extension Ring {
    /// Where the kernel puts completions.
    var completionMemory:
        (tail: UnsafeMutablePointer<Atomic<UInt32>>, entries: UnsafeMutablePointer<CompletionEntry>, mask: UInt32)
    {
        (completionTail, UnsafeMutablePointer(mutating: completionEntries), completionMask)
    }
}
