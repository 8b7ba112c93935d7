import Glibc
import KernelABI
import SystemCalls
import Targets

/// Where a block of the disk is. Its two bits in the map.
enum BlockState: UInt8 {
    /// In the base, as it was when the device was added.
    case base = 0
    case layer = 1
    /// Nowhere: it reads as zeros.
    case zeros = 2
    /// No worker writes this. The map's owner can.
    case unknown = 3
}

/// The map of the blocks, in memory that the device's owner made and that outlives this process: what it says is what the next
/// worker goes by. Its content is not trusted: every value is a state, and no value leads out of the disk.
///
/// Block n has bits 2 (n mod 4) and the one above of byte n / 4.
struct LiveMap: @unchecked Sendable {
    // Unchecked: a pointer, which only the one queue uses once it serves.
    private let bytes: UnsafeMutablePointer<UInt8>
    /// Blocks of the disk.
    let blocks: UInt64

    /// `memory`: `BlockMap.bytes(disk:)` long, and there as long as the process.
    init(_ memory: UnsafeMutableRawPointer, blocks: UInt64) {
        bytes = memory.assumingMemoryBound(to: UInt8.self)
        self.blocks = blocks
    }

    /// Blocks of 64 bits.
    private static let wordBlocks: UInt64 = 32

    @inline(__always)
    func state(_ block: UInt64) -> BlockState {
        let bits = bytes[Int(truncatingIfNeeded: block >> 2)] >> (UInt8(truncatingIfNeeded: block & 3) &* 2)
        return BlockState(rawValue: bits & 3).unsafelyUnwrapped
    }

    /// The first block from `first` on, and before `limit`, that is in another state; `limit` when there is none.
    @inline(__always)
    func end(of state: BlockState, from first: UInt64, to limit: UInt64) -> UInt64 {
        var block = first
        while block < limit {
            if block & (LiveMap.wordBlocks - 1) == 0, limit &- block >= LiveMap.wordBlocks,
                word(block) == pattern(state)
            {
                block &+= LiveMap.wordBlocks
                continue
            }
            if self.state(block) != state { return block }
            block &+= 1
        }
        return block
    }

    /// Whether any of them is in the layer.
    func hasLayer(_ range: Range<UInt64>) -> Bool {
        var block = range.lowerBound
        while block < range.upperBound {
            if block & (LiveMap.wordBlocks - 1) == 0, range.upperBound - block >= LiveMap.wordBlocks,
                word(block) & pattern(.layer) == 0
            {
                block += LiveMap.wordBlocks
                continue
            }
            if state(block) == .layer { return true }
            block += 1
        }
        return false
    }

    @inline(__always)
    func set(_ range: Range<UInt64>, _ state: BlockState) {
        var block = range.lowerBound
        while block < range.upperBound {
            if block & 3 == 0, range.upperBound &- block >= 4 {
                let count = (range.upperBound &- block) >> 2
                memset(bytes + Int(block >> 2), Int32(UInt8(truncatingIfNeeded: pattern(state))), Int(count))
                block &+= count << 2
                continue
            }
            let place = Int(block >> 2)
            let shift = UInt8(truncatingIfNeeded: block & 3) &* 2
            // One store: a worker that is killed leaves the old byte or the new one.
            bytes[place] = bytes[place] & ~(3 << shift) | state.rawValue << shift
            block &+= 1
        }
    }

    @inline(__always)
    private func word(_ block: UInt64) -> UInt64 {
        UnsafeRawPointer(bytes).load(fromByteOffset: Int(block >> 2), as: UInt64.self)
    }

    @inline(__always)
    private func pattern(_ state: BlockState) -> UInt64 { UInt64(state.rawValue) &* 0x5555_5555_5555_5555 }
}
