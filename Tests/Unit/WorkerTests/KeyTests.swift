import Glibc
import KernelABI
import Testing

@testable import Worker

@Suite("A request's key")
struct RequestKeyTests {
    @Test("keeps tag and kind apart", arguments: [UInt16(0), 1, 4095, 0xffff])
    func packing(tag: UInt16) {
        let kinds: [RequestKey.Kind] = [.command, .data, .control, .probe]
        for kind in kinds {
            let key = RequestKey(rawValue: RequestKey(tag: tag, kind).rawValue)
            #expect(key.tag == tag)
            for other in kinds { #expect(key.isKind(other) == (other == kind)) }
        }
    }

    @Test("of a command is just the tag")
    func command() {
        #expect(RequestKey(tag: 17, .command).rawValue == 17)
    }
}

@Suite("An outcome")
struct OutcomeTests {
    @Test("is never taken for a pending one")
    func pending() {
        #expect(Outcome.done(0) != .pending)
        #expect(Outcome.done(UInt32(UblkLimits.maxIOBytes)) != .pending)
        #expect(Outcome.failed(EIO) != .pending)
        #expect(Outcome.failed(EIO).rawValue == -EIO)
    }
}

@Suite("A disk's bounds")
struct DiskBoundsTests {
    let bounds = DiskBounds(size: 1 << 20, maxIOBytes: 65536)

    private func range(_ start: UInt64, _ sectors: UInt32) -> UblkIODescriptor {
        UblkIODescriptor(operationAndFlags: 0, sectors: sectors, startSector: start)
    }

    @Test("hold what lies on the disk")
    func inside() {
        #expect(bounds.contains(range(0, 2048)))
        #expect(bounds.contains(range(2048, 0)))
        #expect(bounds.contains(range(2047, 1)))
        #expect(bounds.containsData(range(0, 128)))
    }

    @Test("refuse what goes beyond the end, by any arithmetic")
    func outside() {
        #expect(!bounds.contains(range(2048, 1)))
        #expect(!bounds.contains(range(2049, 0)))
        #expect(!bounds.contains(range(.max, 1)))
        #expect(!bounds.contains(range(.max - 10, .max)))
        #expect(!bounds.contains(range(0, .max)))
    }

    @Test("refuse data that is larger than a request's buffer")
    func tooMuch() {
        #expect(!bounds.containsData(range(0, 129)))
    }
}
