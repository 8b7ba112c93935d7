import Glibc

/// A volatile write cache: sectors that were written and are not in the file yet. It has places for blocks of eight sectors, a bit for
/// each sector that is there, and a table that finds a block's place. Blocks leave it all at once, when everything is in the file.
struct FaultCache: @unchecked Sendable {
    // Unchecked: it belongs to the one queue.
    /// Bytes and sectors of a block.
    static let block = 4096
    static let sectors: UInt64 = 8

    let capacity: Int
    /// Blocks that have a place.
    private(set) var used = 0
    private let data: UnsafeMutableRawPointer
    private let numbers: UnsafeMutablePointer<UInt64>
    private let masks: UnsafeMutablePointer<UInt8>
    /// Place and one of each block, at its hash or behind it; 0: nothing.
    private let table: UnsafeMutablePointer<UInt32>
    private let tableMask: Int

    private static func tableSize(_ blocks: Int) -> Int {
        var size = 16
        while size < 2 * blocks { size *= 2 }
        return size
    }

    /// Of memory for so many blocks.
    static func bytes(blocks: Int) -> Int {
        blocks == 0 ? 0 : blocks * (block + 8 + 8) + tableSize(blocks) * 4
    }

    /// `base`: `bytes` of zeros at the start of a page.
    init(_ base: UnsafeMutableRawPointer, blocks: Int) {
        capacity = blocks
        data = base
        numbers = (base + blocks * FaultCache.block).assumingMemoryBound(to: UInt64.self)
        table = (base + blocks * (FaultCache.block + 8)).assumingMemoryBound(to: UInt32.self)
        tableMask = FaultCache.tableSize(blocks) - 1
        masks = (base + blocks * (FaultCache.block + 8) + (tableMask + 1) * 4).assumingMemoryBound(to: UInt8.self)
    }

    private func hash(_ number: UInt64) -> Int {
        Int(truncatingIfNeeded: (number &* 0x9e37_79b9_7f4a_7c15) >> 33) & tableMask
    }

    /// The place of a block; nil when it has none.
    private func find(_ number: UInt64) -> Int? {
        if used == 0 { return nil }
        var index = hash(number)
        while table[index] != 0 {
            let place = Int(table[index] - 1)
            if numbers[place] == number { return place }
            index = (index + 1) & tableMask
        }
        return nil
    }

    private mutating func add(_ number: UInt64) -> Int {
        let place = used
        used += 1
        numbers[place] = number
        masks[place] = 0
        var index = hash(number)
        // The table has twice as many entries as there are places.
        while table[index] != 0 { index = (index + 1) & tableMask }
        table[index] = UInt32(place + 1)
        return place
    }

    /// Calls `body` for each block that the sectors touch: its number, the bits of its sectors, and where they begin among all.
    private func each(
        _ first: UInt64, _ count: UInt64, _ body: (_ number: UInt64, _ mask: UInt8, _ begin: Int, _ offset: Int) -> Void
    ) {
        var sector = first
        while sector < first + count {
            let begin = sector % FaultCache.sectors
            let length = min(FaultCache.sectors - begin, first + count - sector)
            let mask = UInt8(truncatingIfNeeded: (UInt16(1) << length - 1) << begin)
            body(sector / FaultCache.sectors, mask, Int(begin), Int(sector - first))
            sector += length
        }
    }

    /// Takes sectors; false when there is no room for them, and then nothing has changed.
    mutating func put(_ first: UInt64, _ count: UInt64, _ source: UnsafeRawPointer) -> Bool {
        if count == 0 { return true }
        var missing = 0
        each(first, count) { number, _, _, _ in if find(number) == nil { missing += 1 } }
        guard missing <= capacity - used else { return false }
        var cache = self
        each(first, count) { number, mask, begin, offset in
            let place = cache.find(number) ?? cache.add(number)
            memcpy(
                cache.data + place * FaultCache.block + begin * 512, source + offset * 512,
                mask.nonzeroBitCount * 512)
            cache.masks[place] |= mask
        }
        self = cache
        return true
    }

    /// Puts what it has of these sectors over what the file has.
    func overlay(_ first: UInt64, _ count: UInt64, _ target: UnsafeMutableRawPointer) {
        if used == 0 { return }
        each(first, count) { number, mask, begin, offset in
            guard let place = find(number) else { return }
            let there = masks[place] & mask
            if there == 0 { return }
            for bit in begin..<Int(FaultCache.sectors) where there >> bit & 1 == 1 {
                memcpy(target + (offset + bit - begin) * 512, data + place * FaultCache.block + bit * 512, 512)
            }
        }
    }

    /// Forgets sectors: others take their place.
    func drop(_ first: UInt64, _ count: UInt64) {
        if used == 0 { return }
        if count / FaultCache.sectors < UInt64(used) {
            each(first, count) { number, mask, _, _ in
                if let place = find(number) { masks[place] &= ~mask }
            }
            return
        }
        // A long range: looks at each block instead.
        for place in 0..<used {
            for bit in 0..<FaultCache.sectors {
                let sector = numbers[place] * FaultCache.sectors + bit
                if sector >= first, sector - first < count { masks[place] &= ~(1 << UInt8(bit)) }
            }
        }
    }

    /// Sectors of one block that follow each other.
    struct Run: Equatable, Sendable {
        var place = 0
        var begin = 0
        /// 0: none.
        var count = 0
        /// The first sector of the disk.
        var sector: UInt64 = 0
        var address: UInt64 = 0
    }

    /// The first run at this place or behind it; nil when there is none.
    func run(from place: Int) -> Run? {
        var place = place
        while place < used {
            let mask = masks[place]
            if mask != 0 {
                let begin = mask.trailingZeroBitCount
                let count = (~(mask >> UInt8(begin))).trailingZeroBitCount
                return Run(
                    place: place, begin: begin, count: min(count, 8 - begin),
                    sector: numbers[place] * FaultCache.sectors + UInt64(begin),
                    address: UInt64(UInt(bitPattern: data + place * FaultCache.block + begin * 512)))
            }
            place += 1
        }
        return nil
    }

    /// The run is in the file.
    func finish(_ run: Run) {
        masks[run.place] &= ~UInt8(truncatingIfNeeded: (UInt16(1) << run.count - 1) << run.begin)
    }

    /// Keeps the sectors for which `keeps` is true, and returns how many were lost and how many were kept.
    func filter(_ keeps: (_ sector: UInt64) -> Bool) -> (lost: UInt64, kept: UInt64) {
        var (lost, kept): (UInt64, UInt64) = (0, 0)
        for place in 0..<used {
            for bit in 0..<UInt8(FaultCache.sectors) where masks[place] >> bit & 1 == 1 {
                if keeps(numbers[place] * FaultCache.sectors + UInt64(bit)) {
                    kept += 1
                } else {
                    lost += 1
                    masks[place] &= ~(1 << bit)
                }
            }
        }
        return (lost, kept)
    }

    mutating func clear() {
        if used == 0 { return }
        memset(table, 0, (tableMask + 1) * 4)
        memset(masks, 0, used)
        used = 0
    }
}
