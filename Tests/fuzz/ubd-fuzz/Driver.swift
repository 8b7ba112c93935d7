import Glibc
import KernelABI
import Synchronization
import WorkerProtocol

@testable import Ring
@testable import Worker

/// Where a loop in batch mode takes tags from: the buffers that it has given to the kernel.
struct TagBuffers {
    let ring: UnsafeMutableRawPointer
    let count: UInt32
    /// Bytes of an element of the lists that come back.
    let elementBytes: Int

    /// How many buffers were given so far, modulo 2^16.
    var tail: UInt16 { ring.load(fromByteOffset: 14, as: UInt16.self) }

    /// The address and number of the buffer that was given as the `index`th.
    func buffer(_ index: UInt16) -> (address: UInt64, bytes: UInt32, number: UInt16) {
        let entry = ring + Int(UInt32(index) & (count - 1)) * 16
        return (
            entry.load(as: UInt64.self), entry.load(fromByteOffset: 8, as: UInt32.self),
            entry.load(fromByteOffset: 12, as: UInt16.self)
        )
    }
}

/// The ublk driver and the kernel, as the script wants them: brings requests, takes submissions and results, and checks each.
/// It keeps to the protocol (a tag comes only when it is the driver's; no result exceeds what was asked), and to nothing
/// else: descriptors hold anything, and change under way.
struct Driver {
    static let depth: UInt16 = 8
    static let completions = 64

    private enum Tag: Equatable {
        case withDriver
        /// Given to the loop; with nothing under way it must be a range that waits for its turn.
        case held(Submission?)
    }

    private var tags = [Tag](repeating: .withDriver, count: Int(Driver.depth))
    /// The descriptor was changed while the request was held.
    private var isChanged = [Bool](repeating: false, count: Int(Driver.depth))
    private var fetchIsArmed = true
    private var buffersTaken: UInt16 = 0
    private var disk = Disk(zeroCopy: false)

    /// Runs the script, then ends what is under way.
    mutating func run<Loop: DrivenLoop & ~Copyable>(_ loop: inout Loop, _ disk: Disk, _ script: inout Script) {
        self.disk = disk
        // Nothing of the input before is left, or a finding could not be reproduced.
        loop.queue.counters.words.update(repeating: 0, count: StatisticsPage.Word.count)
        loop.queue.counters = Counters(words: loop.queue.counters.words, clock: TickClock(scale: 1 << 30))
        var brought: UInt64 = 0
        while !script.isAtEnd {
            let step = script.next(UInt8.self)
            let tag = Int(step >> 3) % Int(Driver.depth)
            switch step & 7 {
            case 0, 1, 2: brought += bring(tag, withNext: step & 0x80 != 0, &loop, &script)
            case 3, 4, 5: complete(tag, Driver.result(&script), &loop)
            case 6: change(tag, &loop, &script)
            default: break
            }
            // Several completions in one turn now and then.
            if step & 0x40 == 0 || completionsWaiting(loop) > Driver.completions / 2 { turn(&loop) }
        }
        turn(&loop)
        for _ in 0...Int(Driver.depth) where tags.contains(where: { $0 != .withDriver }) {
            for tag in tags.indices { complete(tag, -EIO, &loop) }
            turn(&loop)
        }
        require(!tags.contains { $0 != .withDriver }, "requests were never given back: \(tags)")
        require(loop.queue.counters.taken == brought, "\(brought) requests came")
        require(loop.queue.counters.committed == loop.queue.counters.taken, "counted otherwise than given back")
        require(loop.queue.ranges.underWay == 0, "\(loop.queue.ranges.underWay) ranges for ever under way")
        for tag in 0..<Int(Driver.depth) {
            let request = loop.queue.requests[tag]
            require(request.troubled == 0 && request.moved == 0 && request.detour == .none, "\(request) is left")
            // A null disk clears whole pages.
            if !disk.zeroCopy, !disk.isNull { Driver.checkEnd(of: loop.queue.bufferPointer(of: UInt16(tag))) }
            loop.queue.requests[tag].dirty = 0
        }
    }

    // MARK: The kernel's side

    /// A request on the tag, if it is the driver's, and on the next one too. Returns how many came.
    private mutating func bring<Loop: DrivenLoop & ~Copyable>(
        _ tag: Int, withNext: Bool, _ loop: inout Loop, _ script: inout Script
    ) -> UInt64 {
        var coming: [UInt16] = []
        for candidate in [tag, (tag + 1) % Int(Driver.depth)].prefix(withNext ? 2 : 1)
        where tags[candidate] == .withDriver {
            loop.queue.ownDescriptors[candidate] = Driver.descriptor(&script, disk)
            coming.append(UInt16(candidate))
        }
        if coming.isEmpty { return 0 }
        if let buffers = loop.tagBuffers {
            guard fetchIsArmed else { return 0 }
            guard buffers.tail != buffersTaken else {
                fetchIsArmed = false
                post(&loop, CompletionEntry(userData: 0, result: -ENOBUFS, flags: 0))
                return 0
            }
            let buffer = buffers.buffer(buffersTaken)
            buffersTaken &+= 1
            require(buffer.bytes == 256 && UInt32(buffer.number) < buffers.count, "\(buffer)")
            let memory = UnsafeMutablePointer<UInt16>(bitPattern: UInt(buffer.address))!
            for (index, tag) in coming.enumerated() { memory[index] = tag }
            let flags = IOUring.CompletionFlags.buffer | IOUring.CompletionFlags.more | UInt32(buffer.number) << 16
            post(&loop, CompletionEntry(userData: 0, result: Int32(coming.count * 2), flags: flags))
        } else {
            for tag in coming {
                post(&loop, CompletionEntry(userData: RequestKey(tag: tag, .command).rawValue, result: 0, flags: 0))
            }
        }
        for tag in coming {
            tags[Int(tag)] = .held(nil)
            isChanged[Int(tag)] = false
        }
        return UInt64(coming.count)
    }

    /// Ends what is under way for the tag. `wanted`: an errno, or a count, which is cut to what was asked.
    private mutating func complete<Loop: DrivenLoop & ~Copyable>(_ tag: Int, _ wanted: Int32, _ loop: inout Loop) {
        guard case .held(let submission?) = tags[tag] else { return }
        var result = wanted
        if result > 0 { result = submission.movesData ? min(result, Int32(submission.length)) : 0 }
        tags[tag] = .held(nil)
        post(&loop, CompletionEntry(userData: submission.userData, result: result, flags: 0))
    }

    /// A descriptor changes although the request is held. Not from data to something else: the driver never does any of
    /// that, and what a submission was for is taken from it.
    private mutating func change<Loop: DrivenLoop & ~Copyable>(_ tag: Int, _ loop: inout Loop, _ script: inout Script) {
        guard tags[tag] != .withDriver else { return }
        let old = loop.queue.ownDescriptors[tag]
        var new = Driver.descriptor(&script, disk)
        if max(old.operation, new.operation) > UblkIOOperation.write {
            new.operationAndFlags = new.operationAndFlags & ~0xff | UInt32(old.operation)
        }
        loop.queue.ownDescriptors[tag] = new
        isChanged[tag] = true
    }

    /// Small numbers near the ends of the disk, or any.
    private static func descriptor(_ script: inout Script, _ disk: Disk) -> UblkIODescriptor {
        let form = script.next(UInt8.self)
        if form & 0x80 != 0 {
            return UblkIODescriptor(
                operationAndFlags: script.next(), sectors: script.next(), startSector: script.next(),
                address: script.next())
        }
        let sectors = UInt32(script.next(UInt8.self) % 16)
        let distance = UInt64(script.next(UInt8.self) % 32)
        return UblkIODescriptor(
            operationAndFlags: UInt32(form & 7) | UInt32(form & 0x78) << 10, sectors: sectors,
            startSector: form & 0x40 == 0 ? distance : (disk.size >> 9) &- distance)
    }

    /// What a submission comes to: the kernel's errnos reach to 4095 (MAX_ERRNO).
    private static func result(_ script: inout Script) -> Int32 {
        let kind = script.next(UInt8.self)
        let known = [EINTR, EAGAIN, EINVAL, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, EDQUOT]
        if kind < 64 { return .max }
        if kind < 128 { return Int32(kind & 63) * 128 }
        if kind < 192 { return -known[Int(kind) % known.count] }
        return kind < 224 ? -1 - Int32(script.next(UInt16.self) % 4095) : Int32(script.next(UInt16.self))
    }

    private func post<Loop: DrivenLoop & ~Copyable>(_ loop: inout Loop, _ completion: CompletionEntry) {
        let ring = loop.queue.ring.completionMemory
        let tail = ring.tail.pointee.load(ordering: .relaxed)
        ring.entries[Int(tail & ring.mask)] = completion
        ring.tail.pointee.store(tail &+ 1, ordering: .releasing)
    }

    private func completionsWaiting<Loop: DrivenLoop & ~Copyable>(_ loop: borrowing Loop) -> Int {
        loop.queue.ring.completions().count
    }

    // MARK: The loop's side

    /// The loop handles what has completed; the kernel takes what it submits.
    private mutating func turn<Loop: DrivenLoop & ~Copyable>(_ loop: inout Loop) {
        let status = loop.handleCompletions()
        require(status == 0, "the loop gives up: \(status)")
        let entries = loop.queue.ring.pendingEntries()
        require(entries.count <= loop.queue.ring.capacity, "\(entries.count) submissions at once")
        loop.queue.ring.taken = loop.queue.ring.tail
        for entry in entries { take(entry, &loop) }
    }

    private mutating func take<Loop: DrivenLoop & ~Copyable>(_ entry: Submission, _ loop: inout Loop) {
        require(entry.flags & IOUring.EntryFlags.fixedFile != 0, "not on a fixed file: \(entry)")
        let isCommand = entry.operation == IOUring.Operation.uringCommand && entry.file == RingFiles.device
        guard isCommand else {
            let tag = Int(RequestKey(rawValue: entry.userData).tag)
            require(tag < tags.count && tags[tag] == .held(nil), "not held, or the second one: \(entry)")
            entry.check(disk, buffer: loop.queue.buffer(of: UInt16(tag)), tag: UInt16(tag))
            tags[tag] = .held(entry)
            return
        }
        switch UInt32(truncatingIfNeeded: entry.offset) {
        case UblkIOCommand.fetchMany:
            require(!fetchIsArmed, "fetched twice")
            fetchIsArmed = true
        case UblkIOCommand.commitMany:
            let count = Int(entry.payload >> 32 & 0xffff)
            let bytes = loop.tagBuffers!.elementBytes
            require((1...tags.count).contains(count) && Int(entry.length) == count * bytes, "\(entry)")
            for index in 0..<count {
                let element = UnsafeRawPointer(bitPattern: UInt(entry.address))! + index * bytes
                let word = element.load(as: UInt64.self)
                giveBack(Int(word & 0xffff), Int32(truncatingIfNeeded: word >> 32), loop)
            }
            post(&loop, CompletionEntry(userData: entry.userData, result: Int32(count * bytes), flags: 0))
        default:
            giveBack(Int(entry.payload >> 16 & 0xffff), Int32(truncatingIfNeeded: entry.payload >> 32), loop)
        }
    }

    /// A request comes back with its result.
    private mutating func giveBack<Loop: DrivenLoop & ~Copyable>(_ tag: Int, _ result: Int32, _ loop: borrowing Loop) {
        require(tag < tags.count && tags[tag] == .held(nil), "tag \(tag) is given back, not held or under way")
        tags[tag] = .withDriver
        require(result >= -4095 && result <= Int32(Disk.maxIOBytes), "result \(result)")
        let descriptor = loop.queue.ownDescriptors[tag]
        guard result > 0, !isChanged[tag] else { return }
        require(descriptor.operation <= UblkIOOperation.write, "\(result) bytes of \(descriptor)")
        require(result == Int32(descriptor.sectors * 512), "a part: \(result) bytes of \(descriptor)")
        require(descriptor.operation == UblkIOOperation.read || !disk.readOnly, "written to a read-only disk")
        let (end, overflow) = descriptor.startSector.addingReportingOverflow(UInt64(descriptor.sectors))
        require(!overflow && end <= disk.size / 512, "beyond the disk: \(descriptor)")
    }

    // MARK: Behind the buffers

    static func markEnd(of buffer: UnsafeMutableRawPointer) {
        buffer.storeBytes(of: 0xa5a5_a5a5_a5a5_a5a5, toByteOffset: Int(Disk.maxIOBytes), as: UInt64.self)
    }

    static func checkEnd(of buffer: UnsafeMutableRawPointer) {
        let word = buffer.load(fromByteOffset: Int(Disk.maxIOBytes), as: UInt64.self)
        require(word == 0xa5a5_a5a5_a5a5_a5a5, "written behind a buffer: \(word)")
    }
}
