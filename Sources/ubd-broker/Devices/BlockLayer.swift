import SystemCalls

/// The block layer's counters of a disk.
enum BlockLayer {
    /// The disk's reads and writes in flight: the two numbers of /sys/block/DISK/inflight. nil when unknown. Flushes are not among
    /// them: see `ManagedDevice.holdsRequests`.
    static func requestsInFlight(_ id: UInt32) -> Int? {
        guard let bytes = try? readFile("/sys/block/ublkb\(id)/inflight") else { return nil }
        return sumOfNumbers(bytes)
    }

    /// Completed reads, writes, discards and flushes: four numbers of /sys/block/DISK/stat
    /// (Documentation/admin-guide/iostats.rst). nil when unknown.
    static func requestsDone(_ id: UInt32) -> Int? {
        guard let bytes = try? readFile("/sys/block/ublkb\(id)/stat") else { return nil }
        let fields = bytes.split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\n") }
        guard fields.count > 15 else { return nil }
        return [0, 4, 11, 15].reduce(0) { $0 &+ sumOfNumbers(Array(fields[$1])) }
    }

    /// Bytes of a disk, from the sectors of 512 bytes in /sys/block/DISK/size. nil when unknown.
    static func bytes(_ id: UInt32, sysfs: String) -> UInt64? {
        guard let text = try? readFile("\(sysfs)/block/ublkb\(id)/size") else { return nil }
        return UInt64(String(decoding: text.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)).map { $0 << 9 }
    }

    /// Parses bytes, since this runs twice a second for each device: splitting the text of one process in /proc into
    /// words would cost a million instructions.
    static func sumOfNumbers(_ bytes: [UInt8]) -> Int {
        var (sum, number) = (0, 0)
        for byte in bytes {
            let digit = Int(byte) - 0x30
            if (0...9).contains(digit) {
                number = min(number, 1 << 40) * 10 + digit
            } else {
                sum += number
                number = 0
            }
        }
        return sum + number
    }
}
