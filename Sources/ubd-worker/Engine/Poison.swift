import Glibc
import KernelABI

extension Queue {
    /// Does nothing except in a test build (`make poison-worker`, never installed): there it fills the buffer of a read
    /// with 0xdb before the target sees the request, so that bytes that nothing fills afterwards show up in the lab's
    /// readers.
    @inline(__always)
    func poison(_ tag: UInt16, _ descriptor: UblkIODescriptor) {
        #if POISONED_BUFFERS
            if isZeroCopy || descriptor.operation != UblkIOOperation.read { return }
            let bytes = min(UInt64(descriptor.sectors) << 9, bufferStride)
            memset(bufferPointer(of: tag), 0xdb, Int(bytes))
            // The bytes that a null disk has to clear.
            requests[Int(tag)].bufferWasFilled(bytes: UInt32(bytes))
        #endif
    }
}
