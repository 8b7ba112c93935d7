import Glibc
import KernelABI

extension Queue {
    /// Nothing, but in a test build (`make poison-worker`, never installed): fills the buffer of a read with 0xdb before the
    /// target sees the request. Whatever nobody fills afterwards then shows itself to the lab's readers.
    @inline(__always)
    func poison(_ tag: UInt16, _ descriptor: UblkIODescriptor) {
        #if POISONED_BUFFERS
            if isZeroCopy || descriptor.operation != UblkIOOperation.read { return }
            let bytes = min(UInt64(descriptor.sectors) << 9, bufferStride)
            memset(bufferPointer(of: tag), 0xdb, Int(bytes))
            // What a null disk has to clear.
            requests[Int(tag)].bufferWasFilled(bytes: UInt32(bytes))
        #endif
    }
}
