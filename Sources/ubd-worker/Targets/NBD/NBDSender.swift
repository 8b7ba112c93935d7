import Glibc
import KernelABI
import NBDProtocol
import Ring

/// What a queue sends on its connection: requests that wait are gathered while a write is under way, and leave together in the next
/// one. A value without references; its memory belongs to the queue.
struct NBDSender {
    /// Requests that are sent by one write, or by several when the socket takes only a part.
    struct Batch {
        /// Most elements of one vectored write (UIO_MAXIOV, linux/uio.h).
        static let mostVectors = 1024

        /// Address of room for the headers, which follow each other.
        var headers: UInt = 0
        /// Address of struct iovec, two for each request at most.
        var vectors: UInt = 0
        /// Bytes of headers.
        var headerBytes = 0
        var vectorCount = 0
        /// The first of the vectors that has not been sent.
        var firstVector = 0
        /// The last vector ends with a header, so that another header can follow in it.
        var endsWithHeader = false

        static func bytes(depth: Int) -> Int { depth * (NBD.requestBytes + 2 * MemoryLayout<iovec>.stride) }

        var isEmpty: Bool { firstVector == vectorCount }

        @inline(__always)
        var table: UnsafeMutablePointer<iovec> { UnsafeMutablePointer(bitPattern: vectors)! }
    }

    private var waiting = Batch()
    private var leaving = Batch()
    private var isWriting = false
    /// Bytes since the start of the connection: added, sent for sure, and sent when the write under way has done all it was told.
    private var added: UInt64 = 0
    private(set) var sent: UInt64 = 0
    private(set) var promised: UInt64 = 0

    /// `address`: room for two batches.
    mutating func place(_ address: UInt, depth: Int) {
        let each = UInt(Batch.bytes(depth: depth))
        let vectors = UInt(depth * 2 * MemoryLayout<iovec>.stride)
        waiting.vectors = address
        waiting.headers = address + vectors
        leaving.vectors = address + each
        leaving.headers = address + each + vectors
    }

    /// Adds a request, with `bytes` of data from the address `data` on. Returns where it ends, in bytes since the start of the
    /// connection. Each tag has one request here at most, so there is room.
    @inline(__always)
    mutating func add(_ request: NBDRequest, data: UInt64, bytes: UInt32) -> UInt64 {
        let place = waiting.headers &+ UInt(bitPattern: waiting.headerBytes)
        request.encode(to: UnsafeMutableRawPointer(bitPattern: place)!)
        waiting.headerBytes &+= NBD.requestBytes
        let table = waiting.table
        if waiting.endsWithHeader {
            table[waiting.vectorCount &- 1].iov_len &+= NBD.requestBytes
        } else {
            table[waiting.vectorCount] = iovec(
                iov_base: UnsafeMutableRawPointer(bitPattern: place), iov_len: NBD.requestBytes)
            waiting.vectorCount &+= 1
            waiting.endsWithHeader = true
        }
        if bytes != 0 {
            table[waiting.vectorCount] = iovec(
                iov_base: UnsafeMutableRawPointer(bitPattern: UInt(data)), iov_len: Int(bytes))
            waiting.vectorCount &+= 1
            waiting.endsWithHeader = false
        }
        added &+= UInt64(NBD.requestBytes) &+ UInt64(bytes)
        return added
    }

    /// Begins a write when there is something to send and none is under way.
    @inline(__always)
    mutating func write(_ queue: inout Queue<NBDTarget>) {
        if isWriting { return }
        if leaving.isEmpty {
            if waiting.isEmpty { return }
            let (headers, vectors) = (leaving.headers, leaving.vectors)
            leaving = waiting
            waiting = Batch(headers: headers, vectors: vectors)
        }
        let count = min(leaving.vectorCount &- leaving.firstVector, Batch.mostVectors)
        promised = leaving.vectorCount &- leaving.firstVector == count ? ended(leaving) : sent &+ bytes(count)
        isWriting = true
        queue.pushToSocket(
            .transfer(
                head: NBDSender.writeHead,
                address: UInt64(leaving.vectors) &+ UInt64(leaving.firstVector &* MemoryLayout<iovec>.stride),
                length: UInt32(truncatingIfNeeded: count), offset: 0, operationFlags: 0,
                userData: RequestKey(ownSlot: NBDTarget.writeSlot).rawValue))
    }

    private static var writeHead: UInt64 {
        SubmissionEntry.head(
            operation: IOUring.Operation.writev, flags: IOUring.EntryFlags.fixedFile, file: SocketRing.socketFile)
    }

    /// Where the batch that leaves ends: before the first of those that wait.
    @inline(__always)
    private func ended(_ batch: Batch) -> UInt64 { added &- bytes(of: waiting) }

    @inline(__always)
    private func bytes(of batch: Batch) -> UInt64 {
        if batch.isEmpty { return 0 }
        var sum: UInt64 = 0
        for index in batch.firstVector..<batch.vectorCount { sum &+= UInt64(batch.table[index].iov_len) }
        return sum
    }

    @inline(never)
    private func bytes(_ count: Int) -> UInt64 {
        var sum: UInt64 = 0
        for index in 0..<count { sum &+= UInt64(leaving.table[leaving.firstVector &+ index].iov_len) }
        return sum
    }

    /// The write that was under way has sent so many bytes.
    @inline(__always)
    mutating func written(_ bytes: UInt64) {
        isWriting = false
        sent &+= bytes
        if sent == promised, leaving.vectorCount &- leaving.firstVector <= Batch.mostVectors {
            leaving.firstVector = leaving.vectorCount
        } else {
            advance(Int(bytes))
        }
        promised = sent
    }

    /// The socket took a part: what is left begins in the middle of a vector.
    @inline(never)
    private mutating func advance(_ bytes: Int) {
        var left = bytes
        while left > 0, !leaving.isEmpty {
            let vector = leaving.table + leaving.firstVector
            if left < vector.pointee.iov_len {
                vector.pointee.iov_base += left
                vector.pointee.iov_len -= left
                return
            }
            left -= vector.pointee.iov_len
            leaving.firstVector += 1
        }
    }
}
