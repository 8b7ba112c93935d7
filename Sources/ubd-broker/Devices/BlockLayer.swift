import SystemCalls

/// What the block layer counts of a disk.
enum BlockLayer {
    /// Reads and writes that the block layer waits for: /sys/block/DISK/inflight, two numbers. nil: not
    /// known.
    static func requestsInFlight(_ id: UInt32) -> Int? {
        guard let bytes = try? readFile("/sys/block/ublkb\(id)/inflight") else { return nil }
        return sumOfNumbers(bytes)
    }

    /// Reads, writes, discards and flushes that have ended since there is the disk: four of the numbers of /sys/block/DISK/stat
    /// (Documentation/admin-guide/iostats.rst). nil: not known.
    static func requestsDone(_ id: UInt32) -> Int? {
        guard let bytes = try? readFile("/sys/block/ublkb\(id)/stat") else { return nil }
        let fields = bytes.split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\n") }
        guard fields.count > 15 else { return nil }
        return [0, 4, 11, 15].reduce(0) { $0 &+ sumOfNumbers(Array(fields[$1])) }
    }

    /// By bytes, as in all that is done twice a second for each device: to split text into words costs a million instructions
    /// for what /proc has of a process.
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
